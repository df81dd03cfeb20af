"""Fine-tuning held near the base model: L2 to its weights, and elastic weight consolidation."""

from collections.abc import Sequence
from typing import Any

import torch

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine.batches import collate, token_losses
from lethe.errors import LetheError


class Anchor:
    """The gradient of l2 / 2 |w - w0|^2 + ewc / 2 sum_i F_i (w_i - w0_i)^2.

    F is the diagonal of the empirical Fisher information: the mean over upstream examples of the
    squared gradient of an example's mean loss at the base weights w0 (Kirkpatrick et al. 2017,
    arXiv 1612.00796, equation 3). It holds a copy of the trained weights, and of F for `ewc`.

    Parameters
    ----------
    model
        The base model, before its first step.
    upstream
        Tokenised upstream examples on which F is measured; needed for `ewc` only.
    """

    def __init__(self, model: Any, recipe: Recipe, upstream: Sequence[Tokens] = ()):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.base = [p.detach().clone() for p in self.parameters]
        self.l2 = recipe.l2
        self.ewc = recipe.ewc
        self.fisher = diagonal_fisher(model, self.parameters, upstream) if recipe.ewc else None

    def pull(self) -> None:
        """Adds the penalty's gradient to the parameters' own."""
        for i, (parameter, base) in enumerate(zip(self.parameters, self.base, strict=True)):
            difference = parameter.detach() - base
            pull = self.l2 * difference
            if self.fisher is not None:
                pull = pull + self.ewc * self.fisher[i] * difference
            parameter.grad = pull if parameter.grad is None else parameter.grad.add_(pull)


def diagonal_fisher(
    model: Any, parameters: Sequence[torch.nn.Parameter], examples: Sequence[Tokens]
) -> list[torch.Tensor]:
    """Mean squared gradient of each example's mean loss, one tensor per parameter.

    Leaves the parameters without gradients.

    Raises
    ------
    LetheError
        If no example carries loss.
    """
    usable = [example for example in examples if example.scored]
    if not usable:
        raise LetheError(
            "recipe.ewc: no replayable upstream example has a token that carries loss; give "
            "upstream examples that are not held out, or leave ewc out"
        )
    was_training = model.training
    model.eval()
    sums = [torch.zeros_like(p) for p in parameters]
    for example in usable:
        model.zero_grad(set_to_none=True)
        losses, _ = token_losses(model, collate([example], parameters[0].device))
        # Processes that share the model take the same example, so the mean of their gradients is
        # the example's gradient.
        losses.mean().backward()
        for total, parameter in zip(sums, parameters, strict=True):
            if parameter.grad is not None:
                total.addcmul_(parameter.grad, parameter.grad)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return [total / len(usable) for total in sums]
