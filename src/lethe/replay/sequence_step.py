"""One step of a sequence: fine-tune on a task from the weights that the step before handed on.

Forgetting is measured against the original base model. The step also measures its own task before
it is learned, and every task of the sequence so far after it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lethe.config.data_settings import even_sizes
from lethe.config.model_settings import Recipe
from lethe.config.replay_settings import ReplayRun
from lethe.data.examples import Example, UpstreamExample
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.multitask import MultitaskPart
from lethe.replay.draws import count_replayed
from lethe.replay.replay_inputs import ReplayInputs
from lethe.replay.runs import (
    ChosenReplay,
    choose_replay,
    read_phases,
    refuse_heldout,
    replay_term,
)

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job

# Added to the seed of the draws of earlier tasks' examples, so that they are no copy of others.
_DRAW = 77_003


@dataclass(frozen=True)
class SequenceStep:
    """Which step of which sequence this is.

    Attributes
    ----------
    order, run, seed
        Name of the order, name of the way of training, and the number that is added to the
        recipe's seed.
    tasks
        Names of the order's tasks up to this step's own, which is the last.
    earlier
        Share of the replayed examples that earlier tasks give.
    """

    order: str
    run: str
    seed: int
    tasks: Sequence[str]
    earlier: float = 0.0

    @property
    def number(self) -> int:
        """The number of the step, from 1."""
        return len(self.tasks)

    @property
    def task(self) -> str:
        """The task that the step is trained on."""
        return self.tasks[-1]

    @property
    def share_of_earlier(self) -> float:
        """Share of the replayed examples that earlier tasks give, in this step."""
        if self.number > 1:
            return self.earlier
        # Without an earlier task, all are upstream examples, if the run replays those at all.
        return 1.0 if self.earlier == 1 else 0.0


@dataclass(frozen=True)
class EarlierExamples:
    """Examples of the tasks of a sequence, by task.

    Attributes
    ----------
    evaluation
        Evaluation examples of the tasks before the step's own.
    training
        Training examples of the tasks before the step's own, in the order of the sequence; for
        runs that replay them.
    """

    evaluation: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    training: Mapping[str, Sequence[Example]] = field(default_factory=dict)


def run_step(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    run: ReplayRun,
    *,
    step: SequenceStep,
    examples: EarlierExamples,
    inputs: ReplayInputs | None = None,
) -> tuple[Any, rows.Row]:
    """Fine-tunes on the task of a step and measures all upstream examples and earlier tasks.

    The strategies choose upstream examples as they do for a single fine-tune: by the task's own
    prediction, row or gradient. Strategies that measure the model (mir, online, closed_loop)
    measure the model as the sequence has made it, and count its rises from the base model.

    Parameters
    ----------
    job
        The fine-tune, with the `start` of the step. Its recipe has the changes of the run.

    Returns
    -------
    The model with its adapters merged, ready to be handed on, and the row of all upstream
    examples. The row's `about` holds `task_losses`, and `task_exact_match` where it is measured, of
    every task so far, and `heldout_kl` (nats per token) if the run asks for it.

    Raises
    ------
    LetheError
        If a held-out example would be replayed, or the strategy lacks an input.
    """
    # Imported here because torch takes seconds.
    from lethe.engine.reader import Reader

    title = f"{step.order}, step {step.number}, {step.task}, {step.run}"
    recipe = job.recipe.model_copy(update={"seed": job.recipe.seed + step.seed})
    share = None if isinstance(run.interpolate, list) else run.interpolate
    seeded = replace(job, recipe=recipe, share_of_change=share)
    chosen = choose_replay(
        seeded,
        upstream,
        run,
        task=step.task,
        seed=step.seed,
        title=title,
        share=1 - step.share_of_earlier,
        inputs=inputs,
    )
    earlier = _choose_earlier(seeded, run, step=step, training=examples.training)
    term = _joined_term(run, chosen, earlier, seed=recipe.seed)
    model, tokenizer, row = seeded.run(upstream, term, title=title)
    replayed = list(chosen.replayed)
    if run.chooses_during_training and term is not None:
        row, replayed, _ = read_phases(row, term.examples)
        heldout = [example for example in upstream if example.split == "heldout"]
        refuse_heldout(replayed, heldout, run)
    reader = Reader(model, tokenizer, seeded.scoring_of_base())
    about = {
        "task": step.task,
        "order": step.order,
        "run": step.run,
        "seed": step.seed,
        "step": step.number,
        "replayed": len(replayed) + len(earlier),
        "replayed_upstream": len(replayed),
        "replayed_distinct": len({example.example_id for example in [*replayed, *earlier]}),
        "replayed_ids": [example.example_id for example in replayed],
        "replayed_token_share": row.about.get("replayed_token_share", 0.0),
        **chosen.costs,
        **_task_measures(reader, recipe, row, step=step, examples=examples, title=title),
    }
    if run.heldout_kl:
        about["heldout_kl"] = seeded.heldout_divergence(model, tokenizer, upstream, title)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    return model, replace(row, about=row.about | about)


def recipe_with_epochs(recipe: Recipe, epochs: float | None, examples: int) -> Recipe:
    """The recipe with as many steps as so many passes over the examples take.

    Parameters
    ----------
    epochs
        Passes over the training examples; None: as the recipe says.
    """
    if epochs is None:
        return recipe
    steps = max(1, math.ceil(epochs * examples / recipe.batch))
    return recipe.model_copy(update={"steps": steps, "max_epochs": None, "group_steps": {}})


def multitask_parts(
    training: Mapping[str, Sequence[Example]],
    evaluation: Mapping[str, Sequence[Example]],
    *,
    recipe: Recipe,
    epochs: Mapping[str, float],
    groups: Mapping[str, str],
) -> dict[str, MultitaskPart]:
    """The parts of a fine-tune on all tasks mixed: each task with the steps of its sequence.

    Parameters
    ----------
    training, evaluation
        Examples by task.
    epochs
        Passes over the training examples of a task. A task that is not named follows the recipe.
    groups
        Group of each task.
    """
    # Imported here because torch takes seconds.
    from lethe.engine.training import planned_steps

    parts = {}
    for task, examples in training.items():
        of_task = recipe_with_epochs(recipe, epochs.get(task), len(examples))
        steps = planned_steps(of_task, len(examples), groups[task])
        parts[task] = MultitaskPart(examples, evaluation[task], steps)
    return parts


def _choose_earlier(
    job: "Job",
    run: ReplayRun,
    *,
    step: SequenceStep,
    training: Mapping[str, Sequence[Example]],
) -> list[UpstreamExample]:
    """Training examples of earlier tasks, evenly from each, drawn without replacement."""
    if not run.replays or step.number == 1 or not step.earlier:
        return []
    from lethe.engine.training import planned_steps

    steps = planned_steps(job.recipe, len(job.train), job.group)
    total = count_replayed(steps * job.recipe.batch, run.ratio)
    count = total - round((1 - step.earlier) * total)
    tasks = step.tasks[:-1]
    missing = [task for task in tasks if not training.get(task)]
    if missing:
        raise LetheError(
            f"{step.order}, step {step.number}: no training examples of {missing[0]!r}, which the "
            "run replays; give those of every earlier task"
        )
    selected = []
    for number, (task, size) in enumerate(zip(tasks, even_sizes(count, len(tasks)), strict=True)):
        rng = np.random.default_rng([_DRAW, step.seed, step.number, number])
        order: list[int] = []
        while len(order) < size:
            order += rng.permutation(len(training[task])).tolist()
        for position in order[:size]:
            selected.append(
                UpstreamExample(
                    example_id=f"task {task} {position:05d}",
                    domain=task,
                    split="replayable",
                    example=training[task][position],
                )
            )
    return selected


def _joined_term(
    run: ReplayRun, chosen: ChosenReplay, earlier: Sequence[UpstreamExample], *, seed: int
) -> Any:
    """The replay term with upstream examples and those of earlier tasks in one random order."""
    if not earlier:
        return chosen.term
    examples = [*chosen.replayed, *earlier]
    order = np.random.default_rng([_DRAW, seed]).permutation(len(examples))
    weights = None if chosen.choice is None else chosen.choice.weights
    if weights is not None:
        weights = np.concatenate([weights, np.ones(len(earlier))])[order]
    return replay_term(run, [examples[number] for number in order], weights=weights)


def _task_measures(
    reader: Any,
    recipe: Recipe,
    row: rows.Row,
    *,
    step: SequenceStep,
    examples: EarlierExamples,
    title: str,
) -> dict[str, dict[str, float]]:
    """Loss, and exact match where it is measured, of every task so far after the step."""
    from lethe.measure.own_task import measure_tasks

    earlier = f"{title}, earlier task"
    measures = measure_tasks(reader, examples.evaluation, recipe, title=earlier)
    measures["task_losses"][step.task] = row.about["eval_loss_after"]
    if "eval_exact_match_after" in row.about:
        exact = measures.setdefault("task_exact_match", {})
        exact[step.task] = row.about["eval_exact_match_after"]
    return measures
