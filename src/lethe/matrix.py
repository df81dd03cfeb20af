"""Z with its ids. On disk one line an example and one float32 column a task; in memory M x N."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lethe.errors import LetheError, RowError
from lethe.files import whole
from lethe.rows import Row


@dataclass(frozen=True)
class Matrix:
    """`values` (M, N): forgetting in nats per scored token, NaN where it is not known."""

    values: np.ndarray
    tasks: list[str]
    example_ids: list[str]

    def rows(self, tasks: list[str]) -> np.ndarray:
        """Row numbers of these tasks."""
        place = {task: i for i, task in enumerate(self.tasks)}
        return np.array([place[task] for task in tasks], dtype=int)


def gather(rows: Mapping[str, tuple[Path, Row]]) -> Matrix:
    """Stacks rows, task -> (file, row), into Z.

    Raises
    ------
    RowError
        Naming every row that was measured with other settings or on other examples than most.
    """
    kinds = {task: _kind(row) for task, (_, row) in rows.items()}
    usual = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    if odd := [task for task, kind in kinds.items() if kind != usual]:
        named = "\n".join(f"  - {rows[task][0]}: {_difference(kinds[task], usual)}" for task in odd)
        raise RowError(
            f"rows cannot be gathered into one Z; these differ from the others:\n{named}\n"
            "delete the files that are wrong and run again"
        )
    first = next(iter(rows.values()))[1]
    values = np.stack([row.forgetting for _, row in rows.values()]).astype(np.float32)
    return Matrix(values, list(rows), first.example_ids)


def _kind(row: Row) -> str:
    return json.dumps({**row.settings, "example_ids": row.example_ids}, sort_keys=True)


def _difference(kind: str, usual: str) -> str:
    seen, wanted = json.loads(kind), json.loads(usual)
    keys = sorted(key for key in seen | wanted if seen.get(key) != wanted.get(key))
    shown = [
        f"{key}: {_short(seen.get(key))}, the others have {_short(wanted.get(key))}" for key in keys
    ]
    return "; ".join(shown)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:150]}... ({len(value)} entries)"


def write(path: Path | str, matrix: Matrix) -> None:
    """Writes Z with a column a task, so that a new task is a new column."""
    columns = {"example_id": pa.array(matrix.example_ids, pa.string())}
    for task, values in zip(matrix.tasks, matrix.values, strict=True):
        columns[task] = pa.array(values, pa.float32())
    with whole(path) as part:
        pq.write_table(pa.table(columns), part, row_group_size=65_536)


def read(path: Path | str) -> Matrix:
    """Reads Z as `write` wrote it."""
    try:
        table = pq.read_table(path)
        tasks = [name for name in table.column_names if name != "example_id"]
        values = np.stack([table[task].to_numpy() for task in tasks])
        return Matrix(values, tasks, table["example_id"].to_pylist())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise LetheError(f"{path}: not a readable Z ({error}); delete the file and run again")


def read_task(path: Path | str, task: str) -> dict[str, float]:
    """One task's values by example_id, without reading the other tasks' columns."""
    try:
        table = pq.read_table(path, columns=["example_id", task])
        ids, values = table["example_id"].to_pylist(), table[task].to_numpy().tolist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LetheError(f"{path}: task {task!r} cannot be read ({error})")
    return dict(zip(ids, values, strict=True))


def read_own(path: Path | str, tasks: list[str]) -> Matrix:
    """Reads a Z of the user's own, whose M rows are in the order of `tasks`.

    .npy: an array M x N. .csv, .parquet: one line an example, a column a task with the task's
    name, and, if wanted, a column example_id.

    Raises
    ------
    LetheError
        If the shape or the columns do not fit the tasks, or values are not numbers.
    """
    path = Path(path)
    if path.suffix == ".npy":
        values = np.load(path, allow_pickle=False)
        if values.ndim != 2 or values.shape[0] != len(tasks):
            raise LetheError(
                f"{path}: shape {values.shape}; wanted ({len(tasks)}, N), a row for each line of "
                "the task table"
            )
        return _own(values, tasks, None)
    if path.suffix not in (".csv", ".parquet"):
        raise LetheError(f"{path}: ends with {path.suffix!r}; known: .npy, .csv, .parquet")
    table = pa.csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    if missing := [task for task in tasks if task not in table.column_names]:
        raise LetheError(f"{path}: no column for the task(s) {missing}; seen: {table.column_names}")
    try:
        values = np.stack([table[task].to_numpy().astype(float) for task in tasks])
    except ValueError as error:
        raise LetheError(f"{path}: a value is not a number ({error})")
    ids = table["example_id"].cast("string") if "example_id" in table.column_names else None
    return _own(values, tasks, ids.to_pylist() if ids is not None else None)


def _own(values: np.ndarray, tasks: list[str], ids: list[str] | None) -> Matrix:
    values = values.astype(np.float32)
    # An infinite loss is no measurement either: masked like NaN, never averaged.
    values[~np.isfinite(values)] = np.nan
    ids = ids or [f"example-{i:06d}" for i in range(values.shape[1])]
    if len(set(ids)) < len(ids):
        raise LetheError("example_id: an id stands twice in the matrix")
    return Matrix(values, tasks, ids)
