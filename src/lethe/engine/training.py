"""Fine-tunes one model on one stream of examples."""

import math
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine import distributed
from lethe.engine.batches import collate, example_means, model_of, token_losses
from lethe.engine.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from lethe.engine.progress import progress
from lethe.engine.regularisation import Anchor
from lethe.engine.scoring import out_of_memory
from lethe.errors import LetheError


@dataclass(frozen=True)
class Trained:
    """What a fine-tune did: steps taken, mean loss of the first and last five, seconds."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens: int
    optimizer: str = "adamw"


def planned_steps(recipe: Recipe, examples: int, group: str = "") -> int:
    """Steps on a new task of a group, fewer if `max_epochs` over its examples end sooner."""
    steps = recipe.group_steps.get(group, recipe.steps)
    if recipe.max_epochs is None:
        return steps
    return max(1, min(steps, math.ceil(recipe.max_epochs * examples / recipe.batch)))


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


def fine_tune(
    model: Any,
    examples: Sequence[Tokens],
    recipe: Recipe,
    title: str,
    unfinished: Checkpoint | None = None,
    upstream: Sequence[Tokens] = (),
) -> Trained:
    """Trains on the examples in the order given, `recipe.batch` a step, each once.

    AdamW with warm-up and decay as the recipe says. Examples without a scored token are skipped
    (they were counted when tokenised). A step that does not fit into memory is taken in passes of
    half as many examples, and so are those after: the same up to rounding.

    Parameters
    ----------
    unfinished
        Where an interrupted run left its state, and this one leaves its own when that is due.
    upstream
        Upstream examples that `recipe.ewc` measures the Fisher information on.

    Raises
    ------
    LetheError
        If no example carries loss, the loss becomes NaN or infinite, or a single example does not
        fit into memory.
    """
    usable = [example for example in examples if example.scored]
    if not usable:
        raise LetheError(f"{title}: no training example has a token that carries loss")
    began = time.perf_counter()
    batches = [usable[i : i + recipe.batch] for i in range(0, len(usable), recipe.batch)]
    _freeze(model, recipe.frozen)
    if distributed.size() > 1:
        distributed.shard(model_of(model))
    loop = _Loop(model, recipe, len(batches), upstream)
    losses = loop.run(batches, title, unfinished or Checkpoint(None))
    seconds = time.perf_counter() - began
    first, last = losses[:5], losses[-5:]
    tokens = sum(len(example.ids) for example in usable)
    first_loss, last_loss = sum(first) / len(first), sum(last) / len(last)
    return Trained(len(losses), first_loss, last_loss, seconds, tokens, loop.optimizer_name)


def _freeze(model: Any, patterns: Sequence[str]) -> None:
    """Parameters whose names match are not trained.

    Raises
    ------
    LetheError
        If a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            some = ", ".join(names[:3])
            raise LetheError(f"recipe.frozen: {pattern!r} matches no parameter; some are {some}")
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LetheError("recipe.frozen: leaves no parameter to train")


class _Loop:
    """Model, optimizer and what is added to their gradients, step by step."""

    def __init__(self, model: Any, recipe: Recipe, steps: int, upstream: Sequence[Tokens]):
        self.model, self.recipe = model, recipe
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer, self.optimizer_name = make_optimizer(self.parameters, recipe)
        self.factor = _schedule(recipe, steps)
        self.micro_batch = recipe.micro_batch
        held = recipe.l2 or recipe.ewc
        self.anchor = Anchor(model, recipe, upstream) if held else None
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def run(self, batches: Sequence, title: str, unfinished: Checkpoint) -> list[float]:
        """Takes the steps that are left; the losses of all."""
        torch.manual_seed(self.recipe.seed + distributed.rank())
        losses = self._resume(unfinished)
        self.model.train()
        left = range(len(losses), len(batches))
        steps = progress(left, title, "step", initial=len(losses), total=len(batches))
        for number in steps:
            losses.append(self._step(batches[number], number, title))
            steps.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if unfinished.due() and len(losses) < len(batches):
                self._save(unfinished, losses)
                unfinished.leave_if_asked(f"{title}, step {len(losses)} of {len(batches)}")
        self.model.eval()
        return losses

    def _save(self, unfinished: Checkpoint, losses: list[float]) -> None:
        # What bitsandbytes keeps is its own affair: such a run starts over.
        if self.optimizer_name == "adamw":
            tensors = optimizer_tensors(self.model, self.optimizer)
            # Each of several processes draws its own dropout.
            for rank, states in enumerate(distributed.gathered(self._random())):
                tensors |= {f"{name}/{rank}": state for name, state in states.items()}
            unfinished.save("training", tensors, {"losses": losses})

    def _resume(self, unfinished: Checkpoint) -> list[float]:
        if (found := unfinished.load("training")) is None:
            return []
        tensors, facts = found
        if not {f"{name}/{distributed.rank()}" for name in self._random()} <= tensors.keys():
            # Written by another version of lethe.
            return []
        restore_optimizer(self.model, self.optimizer, tensors, len(facts["losses"]))
        rank = distributed.rank()
        torch.set_rng_state(tensors[f"random/{rank}"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random_cuda/{rank}"], self.device)
        return facts["losses"]

    def _random(self) -> dict[str, torch.Tensor]:
        states = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _step(self, batch: Sequence[Tokens], number: int, title: str) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * self.factor(number)
        while (total := self._gradients(batch, number, title)) is None:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not math.isfinite(total):
            raise LetheError(f"{title}: loss {total} at step {number}; lower recipe.lr")
        if self.anchor is not None:
            self.anchor.pull()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _gradients(self, batch: Sequence[Tokens], number: int, title: str) -> float | None:
        """Adds up the batch's gradients; its loss. None if less is to be tried at a time."""
        size = self.micro_batch or -(-len(batch) // distributed.size())
        try:
            return self._passes(batch, size, number, title)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            # Of several processes, the others would wait for this one in the middle of a pass.
            if not out_of_memory(error) or distributed.size() > 1:
                raise
        if size == 1:
            tokens = max(len(example.ids) for example in batch)
            raise LetheError(
                f"{title}: one example of up to {tokens} tokens does not fit into memory; set "
                "recipe.gradient_checkpointing, or lower recipe.max_tokens"
            )
        self.micro_batch = -(-size // 2)
        print(f"{title}: out of memory; {self.micro_batch} examples a pass now", file=sys.stderr)
        return None

    def _passes(self, batch: Sequence[Tokens], size: int, number: int, title: str) -> float:
        processes = distributed.size()
        if size < len(batch):
            # Passes of like length pad least; the sum of their gradients is the same.
            batch = sorted(batch, key=lambda example: -len(example.ids))
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        shares = [_share(part, batch, self.recipe.average) for part in parts]
        # Every process takes as many passes: one without a part takes one that counts nothing.
        mine = distributed.share(list(zip(parts, shares, strict=True)), (parts[0], 0.0))
        total = 0.0
        for part, weight in mine:
            loss = _loss(self.model, part, self.recipe, self.device)
            if len(parts) > 1:
                loss = loss * weight
            if processes == 1 and not torch.isfinite(loss):
                raise LetheError(f"{title}: loss {loss.item()} at step {number}; lower recipe.lr")
            # Sharded gradients are averaged over the processes; the loss is their sum.
            (loss if processes == 1 else loss * processes).backward()
            total += loss.item()
        return sum(distributed.gathered(total))


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: Recipe
) -> tuple[torch.optim.Optimizer, str]:
    """AdamW as the recipe names it, and the name of what it became.

    The 8-bit and paged kinds are bitsandbytes' and need CUDA; elsewhere plain AdamW takes their
    place, which is said in the row.

    Raises
    ------
    LetheError
        If bitsandbytes is wanted on a GPU and not installed.
    """
    options = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw" or parameters[0].device.type != "cuda":
        return torch.optim.AdamW(parameters, **options), "adamw"
    try:
        import bitsandbytes
    except ImportError:
        raise LetheError(
            f"recipe.optimizer: {recipe.optimizer} needs the package bitsandbytes; install it or "
            "use adamw"
        )
    kinds = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    kind = getattr(bitsandbytes.optim, kinds[recipe.optimizer])
    return kind(parameters, **options), recipe.optimizer


def _share(part: Sequence[Tokens], batch: Sequence[Tokens], average: str) -> float:
    """The weight of a part's mean loss in the mean loss of its batch."""
    if average == "token":
        return sum(e.scored for e in part) / sum(e.scored for e in batch)
    return len(part) / len(batch)


def _loss(model: Any, examples: Sequence[Tokens], recipe: Recipe, device: Any) -> torch.Tensor:
    batch = collate(examples, device)
    reduced = recipe.dtype == "bfloat16"
    # A weight is cast where it is used and not kept: recomputed layers then hold one at a time.
    cast = {"dtype": torch.bfloat16, "enabled": reduced, "cache_enabled": False}
    with torch.autocast(torch.device(device).type, **cast):
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
