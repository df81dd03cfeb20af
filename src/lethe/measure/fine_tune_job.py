"""Reads a fine-tune from the files that a rule names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lethe.config.model_settings import Recipe, Scoring

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job

_log = logging.getLogger("lethe.measure")


def fine_tune_job(
    inputs: Mapping[str, str],
    recipe: Recipe,
    scoring: Scoring,
    threads: int,
    gpus: int,
    group: str = "",
    unfinished: Path | None = None,
    halvings: int = 0,
    start: Path | None = None,
) -> "Job":
    """Reads everything that a fine-tune needs.

    Parameters
    ----------
    inputs
        Files `card`, `base`, `train` and `evaluation`; `upstream` for EWC and routers.
    group
        The task's group, if steps differ between groups.
    unfinished
        Folder of the checkpoint.
    halvings
        How often batches are halved, after earlier tries that failed.
    start
        File of the weights that the fine-tune starts from; None: the base model's.
    """
    # Imported here because torch takes seconds, and most jobs do without it.
    from lethe.data.examples import (
        read_examples,
        read_upstream,
        replayable_sample,
        without_copies_of_heldout,
    )
    from lethe.engine import models
    from lethe.files import read_json
    from lethe.matrix import rows
    from lethe.measure.forgetting import Job

    models.use_machine(threads, gpus)
    if halvings:
        _log.warning("earlier tries failed: batches are cut to 1/%d", 2**halvings)
    upstream = []
    if recipe.ewc or recipe.routing is not None:
        upstream = without_copies_of_heldout(read_upstream(inputs["upstream"]))
    anchors = []
    if recipe.ewc:
        anchors = replayable_sample(upstream, recipe.ewc_examples, recipe.seed)
    replayable = []
    if recipe.routing is not None:
        replayable = replayable_sample(upstream, recipe.routing.examples, recipe.seed)
    return Job(
        card=read_json(inputs["card"]),
        base=rows.read_row(inputs["base"]),
        train=read_examples(inputs["train"]),
        evaluation=read_examples(inputs["evaluation"]),
        recipe=recipe,
        scoring=scoring,
        gpus=gpus,
        anchors=anchors,
        unfinished=unfinished,
        group=group,
        halvings=halvings,
        start=start,
        replayable=replayable,
    )
