"""First-order associations: inner products of gradients at the weights of the base model.

If a fine-tune moves the weights by D, then the forgetting of example j is, to first order,
<D, grad loss_j>. One step of gradient descent on a task moves the weights by minus its gradient,
so forgetting is proportional to minus <grad task, grad loss_j>.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens
from lethe.engine.batches import collate, example_means, token_losses
from lethe.engine.progress import progress
from lethe.errors import LetheError
from lethe.similarity.embeddings import batches_by_length
from lethe.similarity.projection import CountSketch


def task_gradient(
    model: Any, examples: Sequence[Tokens], tokens_per_batch: int
) -> list[torch.Tensor]:
    """Averages the gradients of the examples' mean losses; returns one tensor per parameter.

    Raises
    ------
    LetheError
        If no example carries loss.
    """
    scored = [example for example in examples if example.scored]
    if not scored:
        raise LetheError(
            "no example of the task has a token that carries loss; check its answers, and whether "
            "recipe.max_tokens cuts them off"
        )
    parameters = list(model.parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for rows in batches_by_length([len(example.ids) for example in scored], tokens_per_batch):
        batch = [scored[row] for row in rows]
        gradient = _gradient(model, parameters, batch)
        for sum_, part in zip(total, gradient, strict=True):
            sum_ += part / len(scored)
    return total


def inner_products(
    model: Any, examples: Sequence[Tokens], directions: np.ndarray, sketch: CountSketch
) -> np.ndarray:
    """Computes inner products (K, n) of sketched directions (K, dims) with examples' gradients.

    Gradients are taken one example after another, and only the products of their sketches are
    stored, so memory holds one gradient for any n. An example without loss has NaN.
    """
    parameters = list(model.parameters())
    sketched = torch.as_tensor(directions, device=sketch.device)
    products = np.full((len(directions), len(examples)), np.nan, dtype=np.float32)
    for column, example in progress(_scored(examples), "gradients", "example"):
        gradient = sketch(_gradient(model, parameters, [example]))
        products[:, column] = (sketched @ gradient).cpu().numpy()
    return products


def _scored(examples: Sequence[Tokens]) -> list[tuple[int, Tokens]]:
    """The examples that carry loss, with their positions."""
    return [(i, example) for i, example in enumerate(examples) if example.scored]


def _gradient(model: Any, parameters: list, batch: Sequence[Tokens]) -> Sequence[torch.Tensor]:
    """Gradient of the sum of the examples' mean losses; zeros for a parameter without influence."""
    losses, rows = token_losses(model, collate(batch, parameters[0].device))
    loss = example_means(losses, rows, len(batch)).sum()
    return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
