"""The direction in which fine-tuning moved the weights, as a sketch. The weights are not stored."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.engine import models
from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.matrix.rows import Row
from lethe.measure.forgetting import Job
from lethe.similarity.projection import CountSketch, sketch_of

_KEY = b"lethe"


@dataclass(frozen=True)
class Direction:
    """Sketch (dims,) of the weights after minus before, and the `settings` of the sketch."""

    values: np.ndarray
    settings: dict[str, Any]


def measure_direction(job: Job, row: Row, task: str, *, projection: dict[str, int]) -> Direction:
    """Repeats the fine-tune of `row` and sketches the change of the weights.

    Raises
    ------
    LetheError
        If the repeated training is not the one that the row was measured after.
    """
    tuned, _, repeated = job.run([], title=task)
    check_same_training(repeated, row, task)
    base, _ = models.load(job.card, job.scoring.weights, job.gpus)
    return weight_difference(base, tuned, sketch_of(base, **projection))


def weight_difference(base: Any, tuned: Any, sketch: CountSketch) -> Direction:
    """Sketches the weights of a fine-tuned model minus those of its base model.

    Low-rank adapters are merged into the weights first.

    Raises
    ------
    LetheError
        If the two models have different parameters.
    """
    if hasattr(tuned, "merge_and_unload"):
        tuned = tuned.merge_and_unload()
    before = dict(base.named_parameters())
    after = dict(tuned.named_parameters())
    if before.keys() != after.keys():
        differing = sorted(before.keys() ^ after.keys())[:3]
        raise LetheError(
            f"base and fine-tuned model have different parameters, such as {differing}; compare a "
            "fine-tuned model with the base model that it was made from"
        )
    differences = (after[name].detach().float() - before[name].detach().float() for name in before)
    return Direction(sketch(differences).cpu().numpy(), sketch_settings(sketch))


def sketch_settings(sketch: CountSketch) -> dict[str, Any]:
    """Settings that two sketches must share, so that their inner product has a meaning."""
    return {"dims": sketch.dims, "seed": sketch.seed, "sizes": sketch.sizes}


def check_same_training(repeated: Row, row: Row, task: str, tolerance: float = 1e-3) -> None:
    """Checks that a repeated fine-tune is the one that the row was measured after.

    Raises
    ------
    LetheError
        If the task's own loss, before or after, differs by more than `tolerance` nats, or
        settings differ.
    """
    for key in ("eval_loss_before", "eval_loss_after"):
        value = repeated.about[key]
        expected = row.about[key]
        if not np.isclose(value, expected, rtol=0, atol=tolerance, equal_nan=True):
            raise LetheError(
                f"task {task!r}: {key} is {value:.6f} in the repeated training but {expected:.6f} "
                "in the task's row. The row was probably measured on another machine or with "
                "another version. Measure the row again on this machine, or remove "
                "weight_difference from similarity.associations"
            )
    if _as_text(repeated.settings) != _as_text(row.settings):
        raise LetheError(
            f"task {task!r}: its row was measured with other settings than this experiment has "
            "now; measure the row again"
        )


def _as_text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def write_direction(path: Path | str, direction: Direction) -> None:
    """Writes one column `value`, with the settings in the metadata, completely or not at all."""
    table = pa.table({"value": pa.array(direction.values, pa.float32())})
    metadata = {_KEY: json.dumps(direction.settings, sort_keys=True).encode()}
    with atomic_write(path) as part:
        pq.write_table(table.replace_schema_metadata(metadata), part)


def read_direction(path: Path | str, sketch: CountSketch) -> np.ndarray:
    """Reads a direction (dims,) that was made with the same sketch.

    Raises
    ------
    LetheError
        If the file is not a direction or was made with another sketch. The message names the file.
    """
    try:
        table = pq.read_table(path)
        settings = json.loads(table.schema.metadata[_KEY])
        values = table["value"].to_numpy()
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise LetheError(
            f"{path}: not a readable direction ({error}). Make it again: snakemake --force {path}"
        )
    if settings != sketch_settings(sketch):
        raise LetheError(
            f"{path}: its sketch has dims {settings['dims']}, seed {settings['seed']} and "
            f"{sum(settings['sizes'])} model parameters; this experiment needs dims {sketch.dims}, "
            f"seed {sketch.seed} and {sum(sketch.sizes)} parameters. Make it again: "
            f"snakemake --force {path}"
        )
    return values
