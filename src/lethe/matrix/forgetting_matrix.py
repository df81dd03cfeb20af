"""Z with its ids. On disk one line an example and one float32 column a task; in memory M x N."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import LetheError, RowError
from lethe.files import atomic_write
from lethe.matrix.rows import Row

ROW_GROUP = 65_536  # examples; the smallest piece that readers of Parquet take in


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


# What numbers depend on beside the settings: other versions or devices round otherwise, and in
# reduced precision by as much as is forgotten.
MACHINE = ("torch", "transformers", "device")


def gather(
    rows: Mapping[str, tuple[Path, Row]],
    mixed_machines: bool = False,
    wanted: Mapping[str, Any] | None = None,
) -> Matrix:
    """Stacks rows, task -> (file, row), into Z.

    Parameters
    ----------
    wanted
        Settings that every row must have been measured with, such as the experiment's recipe; of
        others it is those of most rows.
    mixed_machines
        Take rows that were measured with other versions of torch or transformers, or on other
        devices, as well.

    Raises
    ------
    RowError
        Naming every row that was measured with other settings, on other examples or on another
        machine than most.
    """
    kinds = {task: _kind(row, mixed_machines) for task, (_, row) in rows.items()}
    usual = max(sorted(set(kinds.values())), key=list(kinds.values()).count)
    usual = json.dumps(json.loads(usual) | dict(wanted or {}), sort_keys=True)
    if odd := [task for task, kind in kinds.items() if kind != usual]:
        named = "\n".join(f"  - {rows[task][0]}: {_difference(kinds[task], usual)}" for task in odd)
        raise RowError(
            "rows cannot be gathered into one Z; these differ from the others, or from the "
            f"experiment:\n{named}\n"
            "delete the files that are wrong and run again; if only torch, transformers or the "
            "device differ, allow_mixed_machines: true in the experiment takes them as they are"
        )
    first = next(iter(rows.values()))[1]
    values = np.stack([row.forgetting for _, row in rows.values()]).astype(np.float32)
    return Matrix(values, list(rows), first.example_ids)


def _kind(row: Row, mixed_machines: bool) -> str:
    kind = {**row.settings, "example_ids": row.example_ids}
    for of in () if mixed_machines else ("versions", "base_versions"):
        versions = row.about.get(of) or {}
        kind |= {f"{of}.{name}": versions.get(name) for name in MACHINE}
    return json.dumps(kind, sort_keys=True)


def _difference(kind: str, usual: str) -> str:
    seen, wanted = _flat(json.loads(kind)), _flat(json.loads(usual))
    keys = sorted(key for key in seen | wanted if seen.get(key) != wanted.get(key))
    shown = [f"{key}: {_short(seen.get(key))}, expected {_short(wanted.get(key))}" for key in keys]
    return "; ".join(shown)


def _flat(settings: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Settings in sections as one mapping, `recipe.steps` being a key."""
    flat = {}
    for key, value in settings.items():
        part = _flat(value, f"{within}{key}.") if isinstance(value, dict) else {within + key: value}
        flat |= part
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:150]}... ({len(value)} entries)"


def write(path: Path | str, matrix: Matrix) -> None:
    """Writes Z with a column a task, so that a new task is a new column."""
    count = len(matrix.example_ids)
    parts = [slice(start, start + ROW_GROUP) for start in range(0, max(count, 1), ROW_GROUP)]
    chunks = ((matrix.example_ids[part], matrix.values[:, part]) for part in parts)
    write_chunks(path, matrix.tasks, chunks)


def write_chunks(
    path: Path | str, tasks: Sequence[str], chunks: Iterable[tuple[Sequence[str], np.ndarray]]
) -> None:
    """Writes a Z of any size: each chunk, (example ids (n,), values (M, n)), is a row group."""
    types = [("example_id", pa.string()), *((task, pa.float32()) for task in tasks)]
    schema = pa.schema(types)
    # Losses hardly repeat: a dictionary of them costs time and saves nothing.
    with atomic_write(path) as part, pq.ParquetWriter(part, schema, use_dictionary=False) as file:
        for ids, values in chunks:
            columns = [pa.array(line, pa.float32()) for line in values]
            table = pa.table([pa.array(ids, pa.string()), *columns], schema=schema)
            file.write_table(table, row_group_size=max(len(ids), 1))


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
