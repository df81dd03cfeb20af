"""Fine-tunes one model on one stream of examples."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lethe.batches import collate, example_means, token_losses
from lethe.config.models import Recipe
from lethe.data.tokens import Tokens
from lethe.errors import LetheError
from lethe.progress import progress


@dataclass(frozen=True)
class Trained:
    """What a fine-tune did: steps taken, mean loss of the first and last five, seconds."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens: int


def planned_steps(recipe: Recipe, examples: int) -> int:
    """Steps on the new task: `steps`, or fewer if `max_epochs` over the examples end sooner."""
    if recipe.max_epochs is None:
        return recipe.steps
    return max(1, min(recipe.steps, math.ceil(recipe.max_epochs * examples / recipe.batch)))


def stream(count: int, length: int, seed: int) -> list[int]:
    """Indices of `length` examples: epoch after epoch of `count`, each shuffled anew.

    Raises
    ------
    LetheError
        If there is no example to choose from.
    """
    if count < 1:
        raise LetheError("no training example has a token that carries loss")
    rng = random.Random(f"{seed}/order")
    order: list[int] = []
    while len(order) < length:
        epoch = list(range(count))
        rng.shuffle(epoch)
        order += epoch
    return order[:length]


def fine_tune(model: Any, examples: Sequence[Tokens], recipe: Recipe, title: str) -> Trained:
    """Trains on the examples in the order given, `recipe.batch` a step, each once.

    AdamW with warm-up and decay as the recipe says. Examples without a scored token are skipped
    (they were counted when tokenised).

    Raises
    ------
    LetheError
        If no example carries loss, or the loss becomes NaN or infinite.
    """
    usable = [example for example in examples if example.scored]
    if not usable:
        raise LetheError(f"{title}: no training example has a token that carries loss")
    began = time.perf_counter()
    batches = [usable[i : i + recipe.batch] for i in range(0, len(usable), recipe.batch)]
    losses = list(_steps(model, batches, recipe, title))
    seconds = time.perf_counter() - began
    first, last = losses[:5], losses[-5:]
    tokens = sum(len(example.ids) for example in usable)
    return Trained(len(losses), sum(first) / len(first), sum(last) / len(last), seconds, tokens)


def _steps(
    model: Any, batches: list[Sequence[Tokens]], recipe: Recipe, title: str
) -> Iterator[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(recipe, len(batches)))
    device = parameters[0].device
    torch.manual_seed(recipe.seed)
    model.train()
    steps = progress(batches, title, "step")
    for number, batch in enumerate(steps):
        loss = _loss(model, batch, recipe, device)
        if not torch.isfinite(loss):
            raise LetheError(f"{title}: loss {loss.item()} at step {number}; lower recipe.lr")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        steps.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        yield loss.item()
    model.eval()


def _loss(model: Any, examples: Sequence[Tokens], recipe: Recipe, device: Any) -> torch.Tensor:
    batch = collate(examples, device)
    reduced = recipe.dtype == "bfloat16"
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=reduced):
        losses, rows = token_losses(model, batch)
    if recipe.average == "token":
        return losses.mean()
    return example_means(losses, rows, len(examples)).mean()


def _schedule(recipe: Recipe, steps: int):
    """Factor on the learning rate at a step: linear warm-up, then decay to zero."""

    def factor(step: int) -> float:
        if step < recipe.warmup_steps:
            return (step + 1) / (recipe.warmup_steps + 1)
        left = (steps - step) / max(1, steps - recipe.warmup_steps)
        shapes = {
            "linear": left,
            "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
            "constant": 1.0,
        }
        return max(0.0, shapes[recipe.decay])

    return factor
