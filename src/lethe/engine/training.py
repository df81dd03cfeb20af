"""Fine-tunes one model on one stream of examples."""

import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine import distributed
from lethe.engine.averaging import WeightAverage
from lethe.engine.batches import model_of
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.objectives import (
    Objective,
    ReplayTerm,
    Step,
    make_objective,
    plan_steps,
)
from lethe.engine.phased_steps import Measure, PhasedSteps, PhaseTeacher
from lethe.engine.regularisation import Anchor
from lethe.engine.schedule import Schedule
from lethe.engine.training_loop import LoopSettings, TrainingLoop
from lethe.errors import LetheError


@dataclass(frozen=True)
class Trained:
    """Record of a fine-tune: steps, mean loss of the first and last five in nats, seconds."""

    steps: int
    first_loss: float
    last_loss: float
    seconds: float
    tokens: int
    optimizer: str = "adamw"
    # Share of the tokens that carry loss which are those of replayed examples.
    replayed_share: float = 0.0
    # One record per phase of a training that chooses its replayed examples while it runs.
    phases: list[dict[str, Any]] = field(default_factory=list)


def planned_steps(recipe: Recipe, examples: int, group: str = "") -> int:
    """Steps on a task of a group, fewer if `max_epochs` over its examples end sooner."""
    steps = recipe.group_steps.get(group, recipe.steps)
    if recipe.max_epochs is None:
        return steps
    return max(1, min(steps, math.ceil(recipe.max_epochs * examples / recipe.batch)))


def stream(count: int, length: int, seed: int, title: str) -> list[int]:
    """Indices of `length` examples: epoch after epoch of `count`, each in a new random order.

    Raises
    ------
    LetheError
        If there is no example to choose from; the message begins with `title`.
    """
    if count < 1:
        raise LetheError(
            f"{title}: no training example has a token that carries loss; look at the answers of "
            "the task, or raise recipe.max_tokens"
        )
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
    checkpoint: Checkpoint | None = None,
    upstream: Sequence[Tokens] = (),
    replay: ReplayTerm | None = None,
    measure: Measure | None = None,
    base: Any = None,
) -> Trained:
    """Trains on the examples in the given order, `recipe.batch` per step, each once.

    AdamW with warm-up and decay as the recipe describes. Examples without a scored token are
    skipped (they were counted when they were tokenised). A step that does not fit into memory is
    taken in passes of half as many examples, and so are later steps: the same up to rounding.

    Parameters
    ----------
    checkpoint
        Holds the state of an interrupted run, and receives this run's state when it is due.
    upstream
        Upstream examples on which `recipe.ewc` measures the Fisher information.
    replay
        Tokens of replayed upstream examples, and how they enter the loss.
    measure
        Measures the forgetting of examples by the model as it is now; for a replay term whose
        examples are chosen while the training runs.
    base
        The base model whose distributions a KL objective keeps, if the training starts from other
        weights; None: `model` as it is before its first step.

    Raises
    ------
    LetheError
        If no example carries loss, the loss becomes NaN or infinite, a single example does not fit
        into memory, or examples are to be chosen during the training without `measure`.
    """
    if not any(example.scored for example in examples):
        raise LetheError(f"{title}: no training example has a token that carries loss")
    began = time.perf_counter()
    apart = recipe.prompt_kl is not None
    if replay is not None and replay.chooser is not None:
        if measure is None:
            raise LetheError(f"{title}: a replay term with a chooser needs the argument measure")
        usable = [example for example in examples if example.scored]
        phased = PhasedSteps(usable, replay, batch=recipe.batch, apart=apart, measure=measure)
        step_at = phased.at
        count = len(phased)
        # The teachers only need an example to try the model on.
        planned = [Step(usable[:1], [])]
    else:
        phased = None
        planned = plan_steps(examples, replay, recipe.batch, apart=apart)
        step_at = planned.__getitem__
        count = len(planned)
    _freeze(model, recipe.frozen)
    # Teachers are made from the base model, before it is sharded or restored from a checkpoint.
    objective = make_objective(model, recipe, planned, replay, base)
    if phased is not None and replay.needs_teacher and replay.teacher == "stored":
        teacher_model = model if base is None else base
        phased.use_teacher(PhaseTeacher(teacher_model, objective, replay.top_k))
    if distributed.size() > 1:
        distributed.shard(model_of(model))
    loop = _loop_of(model, recipe, steps=count, objective=objective, upstream=upstream)
    losses = loop.run(step_at, count, title, checkpoint or Checkpoint(), source=phased)
    steps = planned if phased is None else phased.all_steps()
    records = [] if phased is None else phased.records()
    return Trained(
        steps=len(losses),
        first_loss=_mean(losses[:5]),
        last_loss=_mean(losses[-5:]),
        seconds=time.perf_counter() - began,
        tokens=sum(_tokens_of(step) for step in steps),
        optimizer=loop.optimizer_name,
        replayed_share=_replayed_share(steps, _replayed(replay, records)),
        phases=records,
    )


def _replayed(replay: ReplayTerm | None, records: Sequence[dict[str, Any]]) -> ReplayTerm | None:
    """The replay term with the examples that were replayed: all, or those of the phases."""
    if not records:
        return replay
    examples = []
    for record in records:
        examples += [replay.examples[number] for number in record["examples"]]
    return replace(replay, examples=examples)


def _loop_of(
    model: Any, recipe: Recipe, *, steps: int, objective: Objective, upstream: Sequence[Tokens]
) -> TrainingLoop:
    """The training loop that the recipe describes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, optimizer_name = make_optimizer(parameters, recipe)
    anchor = Anchor(model, recipe, upstream) if recipe.l2 or recipe.ewc else None
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return TrainingLoop(
        model,
        settings=LoopSettings(
            section="recipe",
            lr=recipe.lr,
            max_grad_norm=recipe.max_grad_norm,
            seed=recipe.seed,
            micro_batch=recipe.micro_batch,
            checkpoint_steps=None,
            smaller="set recipe.gradient_checkpointing, or lower recipe.max_tokens",
        ),
        optimizer=optimizer,
        optimizer_name=optimizer_name,
        schedule=Schedule.of_recipe(recipe, steps),
        objective=objective,
        penalty=anchor,
        average=None if recipe.ema is None else WeightAverage(model, recipe.ema),
    )


def _freeze(model: Any, patterns: Sequence[str]) -> None:
    """Excludes parameters whose names match from training.

    Raises
    ------
    LetheError
        If a pattern matches no parameter, or no parameter is left to train.
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


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter], recipe: Recipe
) -> tuple[torch.optim.Optimizer, str]:
    """The AdamW variant that the recipe names, with the name of the variant in use.

    The 8-bit and paged variants are bitsandbytes' and need CUDA. Elsewhere plain AdamW takes their
    place, and the row's record names it.

    Raises
    ------
    LetheError
        If bitsandbytes is needed on a GPU and not installed.
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
    classes = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    optimizer = getattr(bitsandbytes.optim, classes[recipe.optimizer])
    return optimizer(parameters, **options), recipe.optimizer


def _tokens_of(step: Step) -> int:
    return sum(len(example.ids) for example in step.new + step.replayed)


def _mean(losses: Sequence[float]) -> float:
    return sum(losses) / len(losses)


def _replayed_share(steps: Sequence[Step], replay: ReplayTerm | None) -> float:
    """Share of the tokens that carry loss which are those of replayed examples."""
    if replay is None or replay.weight == 0:
        return 0.0
    total = 0
    for step in steps:
        total += sum(example.scored for example in step.new + step.replayed)
    return sum(example.scored for example in replay.examples) / total
