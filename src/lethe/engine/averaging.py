"""Exponential moving average of the trained weights."""

from typing import Any

import torch

from lethe.engine import distributed


class WeightAverage:
    """Average of the weights after each step: decay x average + (1 - decay) x weights.

    It begins with the base model's weights, so a short training ends nearer to the base. It holds
    one copy of the trained weights.

    Parameters
    ----------
    model
        The base model, before its first step; its shards in a job of several processes.
    decay
        Share of the average that stays at each step, between 0 and 1.
    """

    def __init__(self, model: Any, decay: float):
        self.decay = decay
        self._parameters = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._parameters[name] = parameter
        self._averages = {}
        for name, parameter in self._parameters.items():
            self._averages[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights of a step."""
        for name, parameter in self._parameters.items():
            self._averages[name].lerp_(parameter.detach(), 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Puts the average in the place of the model's weights."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._averages[name])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The averages by parameter name, for a checkpoint."""
        return {f"average/{name}": average for name, average in self._averages.items()}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restores the result of `tensors`."""
        for name, average in self._averages.items():
            distributed.copy_full(average, tensors[f"average/{name}"])
