"""One replay run: choose, fine-tune with the mixture, measure what was never replayed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.replay.strategies import choose, draws

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job


def replay(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    scores: Mapping[str, float] | None,
    *,
    strategy: str,
    task: str,
    seed: int,
    ratio: float,
    temperature: float,
    accounting: str,
) -> rows.Row:
    """Fine-tunes with replayed examples and gives the row of the held-out ones.

    The seed draws the order of the task's own examples, and with the task's name the replayed
    ones: the same noise for every strategy, so that strategies are compared on the same fine-tune,
    another for every task, so that an interval over tasks covers it.

    Parameters
    ----------
    scores
        Forgetting in nats by example_id; none for the strategies random and none.

    Raises
    ------
    LetheError
        If a held-out example would be replayed.
    """
    # Imported here: torch takes seconds, and `without_replay` does without it.
    from lethe.engine.objectives import ReplayTerm
    from lethe.engine.training import planned_steps

    recipe = job.recipe.model_copy(update={"seed": job.recipe.seed + seed})
    heldout = [example for example in upstream if example.split == "heldout"]
    replayed, size = [], 0.0
    if strategy != "none":
        count = draws(planned_steps(recipe, len(job.train), job.group) * recipe.batch, ratio)
        replayed, size = choose(upstream, scores, count, temperature, [seed, crc32(task.encode())])
    # Evaluation = never replayed. Cheap to be sure of, fatal to the comparison if wrong.
    if leaked := {e.example_id for e in replayed} & {e.example_id for e in heldout}:
        raise LetheError(f"replay {strategy}: held-out examples would be replayed: {leaked}")
    seeded = replace(job, recipe=recipe)
    term = ReplayTerm(replayed, accounting=accounting)
    *_, row = seeded.run(heldout, term, title=f"{task}, replay {strategy}")
    return _labelled(row, replayed, size, strategy=strategy, task=task, seed=seed)


def without_replay(row: rows.Row, upstream: Sequence[UpstreamExample], task: str) -> rows.Row:
    """The run without replay and of seed 0: the task's own row, cut to the held-out examples."""
    heldout = [example.example_id for example in upstream if example.split == "heldout"]
    return _labelled(row.select(heldout), [], 0.0, strategy="none", task=task, seed=0, copied=True)


def _labelled(
    row: rows.Row, replayed: Sequence[UpstreamExample], size: float, **labels
) -> rows.Row:
    about = {
        **labels,
        "replayed": len(replayed),
        "replayed_distinct": len({example.example_id for example in replayed}),
        "effective_sample_size": size,
        "heldout_forgetting": float(np.nanmean(row.forgetting)),
    }
    return replace(row, about=row.about | about)


def replay_line(row: rows.Row) -> dict[str, Any]:
    """A line of replay.csv: one run, measured on held-out upstream examples (nats)."""
    kept = (
        *("strategy", "task", "seed", "heldout_forgetting", "eval_loss_before"),
        *("eval_loss_after", "replayed", "replayed_distinct", "effective_sample_size", "steps"),
        *("missing", "training_seconds"),
    )
    return {key: row.about[key] for key in kept}
