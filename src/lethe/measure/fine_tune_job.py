"""A fine-tune from the files that a rule gives it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job


def fine_tune_job(
    inputs: Mapping[str, str],
    recipe: dict,
    scoring: dict,
    threads: int,
    gpu: int,
    unfinished: Path | None = None,
    halvings: int = 0,
) -> "Job":
    """Reads what a fine-tune needs: inputs card, base, train, evaluation; upstream for EWC.

    `recipe` may hold the task's `group` too, where steps differ by group. `halvings` says how often
    batches are halved, where earlier tries have failed.
    """
    # Imported here: torch takes seconds, and most jobs do without it.
    from lethe.config.model_settings import Recipe, Scoring
    from lethe.data.examples import read_examples, read_upstream, replayable_sample
    from lethe.engine import models
    from lethe.files import read_json
    from lethe.matrix import rows
    from lethe.measure.forgetting import Job

    models.use_machine(threads, gpu)
    if halvings:
        print(f"earlier tries have failed: batches are cut to 1/{2**halvings}", file=sys.stderr)
    group = recipe.get("group", "")
    chosen, anchors = Recipe(**{k: v for k, v in recipe.items() if k != "group"}), []
    if chosen.ewc:
        upstream = read_upstream(inputs["upstream"])
        anchors = replayable_sample(upstream, chosen.ewc_examples, chosen.seed)
    return Job(
        read_json(inputs["card"]),
        rows.read(inputs["base"]),
        read_examples(inputs["train"]),
        read_examples(inputs["evaluation"]),
        chosen,
        Scoring(**scoring),
        gpu,
        anchors,
        unfinished,
        group,
        halvings,
    )
