"""The file contract of changed predictions: one line per upstream example, beside a row of Z.

Columns: example_id; `kl` (KL(base || model) in nats per scored token); the shares of the example's
scored tokens whose most probable word is another one than the base model's (`top1_changed`), is
right before and after (`top1_right_before`, `top1_right_after`), was right and is wrong
(`top1_lost`), was wrong and is right (`top1_gained`); and the mean entropy of the distributions,
`entropy_before` and `entropy_after`, in nats. Where exact match is measured, `answer_gained` is 1
for an answer that was wrong and is right, 0 for one that stayed wrong, and `answer_by_chance` the
share of the answers to the domain's other questions that would be right here. NaN where nothing
was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import RowError
from lethe.files import atomic_write


@dataclass(frozen=True)
class PredictionChanges:
    """Measures (N,) of the upstream examples by name, of one fine-tune."""

    example_ids: list[str]
    measures: dict[str, np.ndarray]


def write_prediction_file(
    path: Path | str, example_ids: Sequence[str], measures: Mapping[str, np.ndarray]
) -> None:
    """Writes the changed predictions of one fine-tune atomically."""
    columns = {"example_id": pa.array(list(example_ids), pa.string())}
    for name, values in measures.items():
        columns[name] = pa.array(np.asarray(values, dtype=np.float32), pa.float32())
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns), part)


def read_prediction_file(path: Path | str) -> PredictionChanges:
    """Reads the changed predictions of one fine-tune.

    Raises
    ------
    RowError
        Naming the file, if it is missing, truncated or not such a file.
    """
    try:
        table = pq.ParquetFile(path).read()
        example_ids = table["example_id"].to_pylist()
        measures = {}
        for name in table.column_names:
            if name != "example_id":
                measures[name] = table[name].to_numpy().astype(np.float32)
        if "kl" not in measures:
            raise ValueError("it has no column kl")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RowError(
            f"{path}: not a readable file of changed predictions ({error}); move it away and run "
            "again to measure it"
        )
    return PredictionChanges(example_ids=example_ids, measures=measures)


def stack_prediction_files(
    paths: Mapping[str, Path], example_ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """Matrices (M, N) by measure, from one file per task in the order of Z's rows.

    Raises
    ------
    RowError
        Naming the file whose examples are not those of Z, or whose measures differ from those of
        the first file.
    """
    by_measure: dict[str, list[np.ndarray]] = {}
    for path in paths.values():
        changes = read_prediction_file(path)
        if changes.example_ids != list(example_ids):
            raise RowError(
                f"{path}: its {len(changes.example_ids)} examples are not the {len(example_ids)} "
                "of Z in their order; move it away and run again to measure it"
            )
        if by_measure and list(by_measure) != list(changes.measures):
            raise RowError(
                f"{path}: has the measures {', '.join(changes.measures)}, other files have "
                f"{', '.join(by_measure)}; move it away and run again to measure it"
            )
        for name, values in changes.measures.items():
            by_measure.setdefault(name, []).append(values)
    return {name: np.stack(rows) for name, rows in by_measure.items()}
