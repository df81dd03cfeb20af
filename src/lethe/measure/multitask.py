"""One fine-tune on several tasks mixed: the upper bound of what a sequence of them can learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lethe.data.examples import Example, UpstreamExample
from lethe.matrix import rows

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job


@dataclass(frozen=True)
class MultitaskPart:
    """A task's part of the mixture: its examples and the steps that a sequence takes on it."""

    training: Sequence[Example]
    evaluation: Sequence[Example]
    steps: int


def measure_multitask(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    tasks: Mapping[str, MultitaskPart],
    *,
    seed: int,
    heldout_kl: bool = False,
    title: str,
) -> rows.Row:
    """Fine-tunes on the tasks mixed, and measures all upstream examples and each task.

    The mixture holds the examples that a sequence of these tasks trains on, each as often, in one
    random order. So only the order differs from a sequence, and the schedule of the learning rate,
    which runs once over all steps.

    Parameters
    ----------
    job
        A fine-tune of the base model; its task's examples are replaced.
    seed
        Added to the recipe's seed.
    heldout_kl
        Also measure KL(base || model) on the held-out examples.

    Returns
    -------
    The row of the upstream examples. Its `about` holds `task_losses`, in nats, and
    `task_exact_match` where it is measured, by task; and `heldout_kl`, in nats per token, if it is
    measured.
    """
    # Imported here because torch takes seconds.
    from lethe.engine.reader import Reader
    from lethe.engine.training import stream
    from lethe.measure.own_task import measure_tasks

    seed_of_mixture = job.recipe.seed + seed
    training: list[Example] = []
    evaluation: list[Example] = []
    for name, task in tasks.items():
        length = task.steps * job.recipe.batch
        of_task = f"{title}, task {name}"
        for position in stream(len(task.training), length, seed_of_mixture, of_task):
            training.append(task.training[position])
        evaluation += task.evaluation
    steps = sum(task.steps for task in tasks.values())
    changes = {"seed": seed_of_mixture, "steps": steps, "max_epochs": None, "group_steps": {}}
    recipe = job.recipe.model_copy(update=changes)
    mixture = replace(job, train=training, evaluation=evaluation, recipe=recipe)
    model, tokenizer, row = mixture.run(upstream, title=title)
    reader = Reader(model, tokenizer, mixture.scoring_of_base())
    own = {name: task.evaluation for name, task in tasks.items()}
    about = {"tasks": list(tasks), "seed": seed}
    about |= measure_tasks(reader, own, recipe, title=title)
    if heldout_kl:
        about["heldout_kl"] = mixture.heldout_divergence(model, tokenizer, upstream, title)
    return replace(row, about=row.about | about)
