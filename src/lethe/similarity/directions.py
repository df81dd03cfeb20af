"""Where fine-tuning moved the weights, as a sketch: the weights themselves are never kept."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.engine import models
from lethe.errors import LetheError
from lethe.files import whole
from lethe.matrix.rows import Row
from lethe.measure.forgetting import Job
from lethe.similarity.projection import CountSketch, sketch_of

_KEY = b"lethe"


@dataclass(frozen=True)
class Direction:
    """Sketch (dims,) of weights after minus before, with the `settings` it was made with."""

    values: np.ndarray
    settings: dict[str, Any]


def measured(job: Job, row: Row, task: str, projection: dict[str, int]) -> Direction:
    """Fine-tunes once more, as `row` was measured, and sketches where the weights went.

    Raises
    ------
    LetheError
        If it was another training that the row was measured after.
    """
    tuned, _, again = job.run([], title=task)
    same_training(again, row, task)
    base, _ = models.load(job.card, job.scoring.weights, job.gpu)
    return difference(base, tuned, sketch_of(base, **projection))


def difference(base: Any, tuned: Any, sketch: CountSketch) -> Direction:
    """Sketches the weights of a fine-tuned model minus those of its base model.

    Low-rank adapters are merged into the weights first.

    Raises
    ------
    LetheError
        If the two models have different parameters.
    """
    if hasattr(tuned, "merge_and_unload"):
        tuned = tuned.merge_and_unload()
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())[:3]
        raise LetheError(f"base and fine-tuned model have different parameters, such as {odd}")
    moved = (after[name].detach().float() - before[name].detach().float() for name in before)
    return Direction(sketch(moved).cpu().numpy(), settings_of(sketch))


def settings_of(sketch: CountSketch) -> dict[str, Any]:
    """What two sketches must share for their inner product to mean anything."""
    return {"dims": sketch.dims, "seed": sketch.seed, "sizes": sketch.sizes}


def same_training(again: Row, measured: Row, task: str, tolerance: float = 1e-3) -> None:
    """Makes sure that a repeated fine-tune is the one that the row was measured after.

    Raises
    ------
    LetheError
        If the task's own loss, before or after, differs by more than `tolerance` nats, or
        settings differ.
    """
    for key in ("eval_loss_before", "eval_loss_after"):
        seen, wanted = again.about[key], measured.about[key]
        if not np.isclose(seen, wanted, rtol=0, atol=tolerance, equal_nan=True):
            raise LetheError(
                f"task {task!r}: trained again, {key} is {seen:.6f}, in its row {wanted:.6f}; rows "
                "of another machine or version? Delete the row and run again, or leave out "
                "weight_difference"
            )
    if _text(again.settings) != _text(measured.settings):
        raise LetheError(f"task {task!r}: its row was measured with other settings; run it again")


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def write(path: Path | str, direction: Direction) -> None:
    """Writes one column `value`, the settings in the metadata; whole or not at all."""
    table = pa.table({"value": pa.array(direction.values, pa.float32())})
    metadata = {_KEY: json.dumps(direction.settings, sort_keys=True).encode()}
    with whole(path) as part:
        pq.write_table(table.replace_schema_metadata(metadata), part)


def read(path: Path | str, sketch: CountSketch) -> np.ndarray:
    """Reads a direction (dims,) made with this very sketch.

    Raises
    ------
    LetheError
        Naming the file, if it is none or was made with another sketch.
    """
    try:
        table = pq.read_table(path)
        settings = json.loads(table.schema.metadata[_KEY])
        values = table["value"].to_numpy()
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise LetheError(f"{path}: not a readable direction ({error}); delete it and run again")
    if settings != settings_of(sketch):
        raise LetheError(
            f"{path}: sketched with dims {settings['dims']} and seed {settings['seed']} of a model "
            f"with {sum(settings['sizes'])} parameters, wanted {sketch.dims}, {sketch.seed} and "
            f"{sum(sketch.sizes)}; delete it and run again"
        )
    return values
