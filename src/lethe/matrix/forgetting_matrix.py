"""Z with its ids. On disk one line per example and one float32 column per task; in memory M x N."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.matrix.rows import Row

ROW_GROUP = 65_536  # examples per row group, the smallest piece that Parquet readers load
# Versions and devices round differently, and in reduced precision by as much as is forgotten.
MACHINE = ("torch", "transformers", "device")
LONGEST_SHOWN = 200  # characters of a setting that a message prints in full


@dataclass(frozen=True)
class Matrix:
    """Forgetting of N examples by M tasks.

    `values` (M, N) is in nats per scored token, NaN where it was not measured. `notes` are
    sentences about the file that it was read from.
    """

    values: np.ndarray
    tasks: list[str]
    example_ids: list[str]
    notes: Sequence[str] = ()

    def rows(self, tasks: list[str]) -> np.ndarray:
        """Row numbers of these tasks."""
        numbers = {task: number for number, task in enumerate(self.tasks)}
        return np.array([numbers[task] for task in tasks], dtype=int)


def stack_rows(rows: Mapping[str, Row]) -> Matrix:
    """Stacks the rows of the tasks into Z, without any check."""
    first = next(iter(rows.values()))
    values = np.stack([row.forgetting for row in rows.values()]).astype(np.float32)
    return Matrix(values=values, tasks=list(rows), example_ids=first.example_ids)


def kind_problems(
    rows: Mapping[str, tuple[Path, Row]],
    mixed_machines: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> list[str]:
    """A text per row that cannot stand in one Z with the others.

    Parameters
    ----------
    rows
        Task -> (file, row).
    mixed_machines
        Whether rows may differ in the versions of torch and transformers, and in the device.
    settings
        Settings that every row must have been measured with, such as the experiment's recipe.
        All other settings must equal those of most rows.
    """
    kinds = {task: _kind(row, mixed_machines) for task, (_, row) in rows.items()}
    counts = Counter(kinds.values())
    # The first in alphabetical order, if several are equally frequent.
    most_frequent = max(sorted(counts), key=counts.__getitem__)
    expected = json.dumps(json.loads(most_frequent) | dict(settings or {}), sort_keys=True)
    problems = []
    for task, kind in kinds.items():
        if kind != expected:
            path, _ = rows[task]
            problems.append(f"{path}: {_difference(kind, expected)}")
    return problems


def _kind(row: Row, mixed_machines: bool) -> str:
    """All that rows of one Z must share, as JSON."""
    kind = {**row.settings, "example_ids": row.example_ids}
    if not mixed_machines:
        kind |= machine_of(row)
    return json.dumps(kind, sort_keys=True)


def machine_of(row: Row) -> dict[str, str | None]:
    """The versions and the device on which a row and its base losses were measured."""
    machine = {}
    for section in ("versions", "base_versions"):
        versions = row.about.get(section) or {}
        for name in MACHINE:
            machine[f"{section}.{name}"] = versions.get(name)
    return machine


def _difference(kind: str, expected: str) -> str:
    actual = _flatten(json.loads(kind))
    required = _flatten(json.loads(expected))
    differences = []
    for key in sorted(actual | required):
        if actual.get(key) != required.get(key):
            differences.append(
                f"{key}: {_shorten(actual.get(key))}, expected {_shorten(required.get(key))}"
            )
    return "; ".join(differences)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping with keys such as `recipe.steps`."""
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < LONGEST_SHOWN else f"{text[:150]}... ({len(value)} entries)"


def write_matrix(path: Path | str, matrix: Matrix) -> None:
    """Writes Z with one column per task, so that a new task is a new column."""
    chunks = []
    for start in range(0, max(len(matrix.example_ids), 1), ROW_GROUP):
        part = slice(start, start + ROW_GROUP)
        chunks.append((matrix.example_ids[part], matrix.values[:, part]))
    write_matrix_chunks(path, matrix.tasks, chunks)


def write_matrix_chunks(
    path: Path | str, tasks: Sequence[str], chunks: Iterable[tuple[Sequence[str], np.ndarray]]
) -> None:
    """Writes a Z of any size; each chunk, (example ids (n,), values (M, n)), is a row group."""
    columns = [("example_id", pa.string())]
    columns += [(task, pa.float32()) for task in tasks]
    schema = pa.schema(columns)
    # Losses hardly repeat, so a dictionary of them would cost time and save nothing.
    with atomic_write(path) as part, pq.ParquetWriter(part, schema, use_dictionary=False) as file:
        for ids, values in chunks:
            arrays = [pa.array(ids, pa.string())]
            arrays += [pa.array(row, pa.float32()) for row in values]
            table = pa.table(arrays, schema=schema)
            file.write_table(table, row_group_size=max(len(ids), 1))


def read_matrix(path: Path | str) -> Matrix:
    """Reads a Z that `write_matrix` wrote.

    Raises
    ------
    LetheError
        Naming the file, if it is not a Z.
    """
    try:
        table = pq.read_table(path)
        tasks = [name for name in table.column_names if name != "example_id"]
        values = np.stack([table[task].to_numpy() for task in tasks])
        return Matrix(values=values, tasks=tasks, example_ids=table["example_id"].to_pylist())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise LetheError(
            f"{path}: not a readable Z ({error}); if lethe made the file, move it away and run "
            "again"
        )


def read_example_ids(path: Path | str) -> list[str]:
    """Reads the ids of a Z's examples, without its values.

    Raises
    ------
    LetheError
        Naming the file, if it is not a Z.
    """
    try:
        return pq.read_table(path, columns=["example_id"])["example_id"].to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LetheError(f"{path}: not a readable Z ({error})")


def read_matrix_row(path: Path | str, task: str) -> dict[str, float]:
    """Reads one task's values per example_id, without reading the columns of other tasks.

    Raises
    ------
    LetheError
        Naming the file and the task, if there is no such column.
    """
    try:
        table = pq.read_table(path, columns=["example_id", task])
        ids = table["example_id"].to_pylist()
        values = table[task].to_numpy().tolist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise LetheError(f"{path}: task {task!r} cannot be read ({error})")
    return dict(zip(ids, values, strict=True))
