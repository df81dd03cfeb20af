"""First-order associations: inner products of gradients at the weights of the base model.

Forgetting of example j by a fine-tune that moves the weights by D is, to first order,
<D, grad loss_j>. One step of gradient descent on a task moves them by minus its gradient, so that
forgetting goes with minus <grad task, grad loss_j>.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens
from lethe.engine.batches import collate, example_means, token_losses
from lethe.engine.progress import progress
from lethe.errors import LetheError
from lethe.similarity.embeddings import by_length
from lethe.similarity.projection import CountSketch


def task_gradient(
    model: Any, examples: Sequence[Tokens], tokens_per_batch: int
) -> list[torch.Tensor]:
    """Mean over the examples of the gradient of each one's mean loss, a tensor a parameter.

    Raises
    ------
    LetheError
        If no example carries loss.
    """
    scored = [example for example in examples if example.scored]
    if not scored:
        raise LetheError("no example of the task has a token that carries loss")
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for rows in by_length([len(example.ids) for example in scored], tokens_per_batch):
        batch = [scored[row] for row in rows]
        for sum_, part in zip(total, _gradient(model, parameters, batch), strict=True):
            sum_ += part / len(scored)
    return total


def inner_products(
    model: Any, examples: Sequence[Tokens], directions: np.ndarray, sketch: CountSketch
) -> np.ndarray:
    """Inner products (K, n) of sketched directions (K, dims) with each example's gradient.

    Gradients are taken one example after another and only their sketch's products are kept: the
    memory is one gradient, whatever n. NaN for an example without loss.
    """
    parameters = list(model.parameters())
    towards = torch.as_tensor(directions, device=sketch.device)
    products = np.full((len(directions), len(examples)), np.nan, dtype=np.float32)
    for place, example in _scored(examples):
        gradient = sketch(_gradient(model, parameters, [example]))
        products[:, place] = (towards @ gradient).cpu().numpy()
    return products


def _scored(examples: Sequence[Tokens]) -> Iterator[tuple[int, Tokens]]:
    numbered = [(i, example) for i, example in enumerate(examples) if example.scored]
    return iter(progress(numbered, "gradients", "example"))


def _gradient(model: Any, parameters: list, batch: Sequence[Tokens]) -> Sequence[torch.Tensor]:
    """Gradient of the sum of the examples' mean losses; zeros where a parameter has no part."""
    losses, rows = token_losses(model, collate(batch, parameters[0].device))
    loss = example_means(losses, rows, len(batch)).sum()
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
