"""Reads a fine-tune from the files that a rule names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job

_log = logging.getLogger("lethe.measure")


def fine_tune_job(
    inputs: Mapping[str, str],
    recipe: dict,
    scoring: dict,
    threads: int,
    gpus: int,
    unfinished: Path | None = None,
    halvings: int = 0,
) -> "Job":
    """Reads everything that a fine-tune needs.

    Parameters
    ----------
    inputs
        Files `card`, `base`, `train` and `evaluation`; `upstream` for EWC.
    recipe
        The recipe; also the task's `group`, if steps differ between groups.
    unfinished
        Folder of the checkpoint.
    halvings
        How often batches are halved, after earlier tries that failed.
    """
    # Imported here because torch takes seconds, and most jobs do without it.
    from lethe.config.model_settings import Recipe, Scoring
    from lethe.data.examples import read_examples, read_upstream, replayable_sample
    from lethe.engine import models
    from lethe.files import read_json
    from lethe.matrix import rows
    from lethe.measure.forgetting import Job

    models.use_machine(threads, gpus)
    if halvings:
        _log.warning("earlier tries failed: batches are cut to 1/%d", 2**halvings)
    recipe_settings = dict(recipe)
    group = recipe_settings.pop("group", "")
    task_recipe = Recipe(**recipe_settings)
    anchors = []
    if task_recipe.ewc:
        upstream = read_upstream(inputs["upstream"])
        anchors = replayable_sample(upstream, task_recipe.ewc_examples, task_recipe.seed)
    return Job(
        card=read_json(inputs["card"]),
        base=rows.read_row(inputs["base"]),
        train=read_examples(inputs["train"]),
        evaluation=read_examples(inputs["evaluation"]),
        recipe=task_recipe,
        scoring=Scoring(**scoring),
        gpus=gpus,
        anchors=anchors,
        unfinished=unfinished,
        group=group,
        halvings=halvings,
    )
