"""Weights between the base model's and a fine-tuned model's (WiSE-FT: Wortsman et al. 2022).

Every share between the two is a model of its own, and costs no training: forgetting and new-task
loss along the line are scored from one fine-tune (arXiv 2109.01903, section 3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def base_weights(model: Any, base: Any | None = None) -> dict[str, torch.Tensor]:
    """Copies of the base model's weights, for `interpolate`.

    Parameters
    ----------
    model
        The model before it is trained, or a fine-tuned one with `base`.
    base
        The base model; not needed for a PEFT model or one with a memory. A PEFT model's base has
        adapters B of zero, whatever A is, so that a share of B is the same share of the weights'
        change.

    Returns
    -------
    Tensors by the names of the model's parameters, on its device.
    """
    if hasattr(model, "disable_adapter"):
        weights = {}
        for name, parameter in model.named_parameters():
            # The matrix of `lethe.engine.memory` is zero in the base model as well.
            if "lora_B" in name or name == "memory":
                weights[name] = torch.zeros_like(parameter)
        return weights
    named = (model if base is None else base).named_parameters()
    device = next(model.parameters()).device
    return {name: parameter.detach().clone().to(device) for name, parameter in named}


def interpolate(model: Any, base: dict[str, torch.Tensor], share: float) -> None:
    """Moves the model's weights, in place, to base + share x (weights - base).

    Share 0 is the base model and share 1 the fine-tuned one, both to the bit.

    Parameters
    ----------
    base
        Base weights by name (`base_weights`); parameters that are not in it stay.

    Raises
    ------
    ValueError
        If a name of `base` is none of the model's.
    """
    parameters = dict(model.named_parameters())
    if unknown := base.keys() - parameters.keys():
        raise ValueError(f"base weights that the model does not have: {sorted(unknown)[:3]}")
    with torch.no_grad():
        for name, weights in base.items():
            parameter = parameters[name]
            parameter.copy_(torch.lerp(weights.to(parameter), parameter, share))


@contextmanager
def interpolated(model: Any, base: dict[str, torch.Tensor], share: float) -> Iterator[None]:
    """The model at a share between base and fine-tuned weights; it is fine-tuned again after."""
    tuned = {}
    for name, parameter in model.named_parameters():
        if name in base:
            tuned[name] = parameter.detach().clone()
    interpolate(model, base, share)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in tuned:
                    parameter.copy_(tuned[name])
