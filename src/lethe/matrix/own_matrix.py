"""A Z of the user's own from .npy, .csv or .parquet.

The orientation is always said, never guessed: a square matrix fits both ways, and a transposed Z
gives results that look like results.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix

# Nats; nothing that was measured comes near. It stands for a column that was left out.
UNMEASURED = -100.0
LAYOUTS = ("tasks_in_rows", "tasks_in_columns")
# What np.load reads: an array, or a zip of arrays.
OWN_KINDS = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
NAMED = 5  # ids and tasks that a message or report names before it only counts


def read(
    path: Path | str, tasks: list[str], layout: str, examples: Path | str | None = None
) -> Matrix:
    """Reads a Z as it is, infinite cells included; `masked` makes it one to compute with.

    .npy: a two-dimensional array of numbers, its tasks in the order of `tasks`. .csv and .parquet,
    tasks in columns: one line an example, a column for each task and, if wanted, `example_id`.
    Tasks in rows: one line a task, named in the column `task`, and a column for each example.

    Parameters
    ----------
    layout
        tasks_in_rows or tasks_in_columns.
    examples
        Names file, one example id a line; for a file that holds no ids itself. Without ids the
        examples are numbered.

    Raises
    ------
    LetheError
        If the file does not fit layout, tasks or names, holds pickled objects, or a value is not
        a number: with what was found and what is expected.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise LetheError(f"matrix.layout: {layout!r}; say one of {', '.join(LAYOUTS)}")
    readers = {".npy": _read_array, ".csv": _read_table, ".parquet": _read_table}
    if path.suffix not in readers:
        raise LetheError(f"{path}: ends with {path.suffix!r}; known: {', '.join(readers)}")
    values, ids = readers[path.suffix](path, tasks, layout)
    if examples is not None:
        if ids is not None:
            raise LetheError(
                f"matrix.examples: {path} names its examples itself; remove the key or the names"
            )
        ids = _names(Path(examples), path, values.shape[1])
    ids = ids or [f"example-{i:06d}" for i in range(values.shape[1])]
    if twice := [name for name, count in Counter(ids).items() if count > 1]:
        raise LetheError(f"{path}: {len(twice)} example id(s) stand twice: {twice[:NAMED]}")
    with np.errstate(over="ignore"):
        return Matrix(np.ascontiguousarray(values, dtype=np.float32), list(tasks), ids)


def masked(matrix: Matrix) -> Matrix:
    """The matrix with infinite cells as NaN: no measurement either, and never averaged."""
    values = np.where(np.isfinite(matrix.values), matrix.values, np.float32(np.nan))
    return Matrix(values, matrix.tasks, matrix.example_ids)


def read_named(path: Path, meta: Path, tasks: list[str]) -> Matrix:
    """A Z as the paper's authors keep theirs: an array with its rows named in a file beside it.

    Of its rows those of `tasks` are taken; others are left out. Cells at or below -100, which
    stand for what was not measured, become NaN (protocol: paper, section 1.4).

    Parameters
    ----------
    path
        .npy, tasks in rows.
    meta
        JSON: collection -> start and stop of its rows, and the names of its tasks in order.

    Raises
    ------
    LetheError
        If the array holds pickled objects or no numbers, the ranges do not name every row once,
        a name stands twice, or a task is not among them.
    """
    rows = _row_names(meta)
    values, _ = _read_array(path, rows, "tasks_in_rows", f"rows that {meta} names")
    if lacking := [task for task in tasks if task not in rows]:
        raise LetheError(
            f"{meta}: names no row for {len(lacking)} of the task table's tasks: {_some(lacking)}; "
            f"it names {_some(rows)}"
        )
    values = values[[rows.index(task) for task in tasks]].astype(np.float32)
    values[values <= UNMEASURED] = np.nan
    ids = [f"example-{i:06d}" for i in range(values.shape[1])]
    return Matrix(values, list(tasks), ids)


def _row_names(meta: Path) -> list[str]:
    """The name of each row, from ranges that follow each other without a gap.

    What no name in a task table may hold, like a space, reads `_` there.
    """
    try:
        collections = json.loads(meta.read_text("utf-8"))
        ranges = sorted((c["start"], c["stop"], name) for name, c in collections.items())
        tasks = [str(task) for _, _, name in ranges for task in collections[name]["tasks"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LetheError(
            f"{meta}: not readable as JSON of collection -> start, stop, tasks ({error!r})"
        )
    names = [re.sub(r"[^A-Za-z0-9_.-]", "_", task) for task in tasks]
    row = 0
    for start, stop, name in ranges:
        count = len(collections[name]["tasks"])
        if start != row or stop - start != count:
            raise LetheError(
                f"{meta}: {name} has rows {start} to {stop} and {count} tasks; expected it to "
                f"start at {row} and to name every row once"
            )
        row = stop
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise LetheError(f"{meta}: the task(s) {_some(twice)} stand twice")
    return names


def _read_array(
    path: Path, tasks: list[str], layout: str, named_by: str = "lines of the task table"
) -> tuple[np.ndarray, None]:
    values = _load(path)
    seen = f"{path}: found shape {values.shape} of {values.dtype}"
    wanted = f"({len(tasks)}, N)" if layout == "tasks_in_rows" else f"(N, {len(tasks)})"
    expected = f"expected {wanted} for the {len(tasks)} {named_by}"
    if values.dtype.kind not in "fiub":
        raise LetheError(f"{seen}; expected numbers")
    if values.ndim != 2 or 0 in values.shape:
        raise LetheError(f"{seen}; {expected}")
    rows = values if layout == "tasks_in_rows" else values.T
    if rows.shape[0] != len(tasks):
        other = LAYOUTS[1 - LAYOUTS.index(layout)]
        turned = f"; say layout: {other}" if rows.shape[1] == len(tasks) else ""
        raise LetheError(f"{seen}, layout {layout}; {expected}{turned}")
    return rows, None


def _load(path: Path) -> np.ndarray:
    _refuse_other_kinds(path)
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        if "pickle" in str(error):
            _refuse_pickle(path)
        raise LetheError(f"{path}: not a readable .npy file ({error})")
    if not isinstance(values, np.ndarray):
        values.close()
        raise LetheError(f"{path}: found an .npz archive; expected one array saved by np.save")
    return values


def _refuse_other_kinds(path: Path) -> None:
    """What begins otherwise than its own files is a pickle to numpy: this says what it is."""
    try:
        with open(path, "rb") as file:
            begins = file.read(24)
    except OSError as error:
        raise LetheError(f"{path}: not a readable .npy file ({error})")
    if not begins or begins.startswith(OWN_KINDS):
        return
    if begins.startswith(b"version https://git-lfs"):
        raise LetheError(
            f"{path}: is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
        )
    # So do pickles begin, from protocol 2 on.
    if begins[0] == 0x80:
        _refuse_pickle(path)
    raise LetheError(f"{path}: is no .npy file (begins with {begins!r}); save it with np.save")


def _refuse_pickle(path: Path) -> NoReturn:
    raise LetheError(
        f"{path}: found pickled Python objects, which can run code and are never loaded; "
        "expected plain numbers: np.save(path, np.asarray(z, dtype='float32'))"
    )


def _read_table(path: Path, tasks: list[str], layout: str) -> tuple[np.ndarray, list[str] | None]:
    table = _table(path)
    if layout == "tasks_in_columns":
        names = [name for name in table.column_names if name != "example_id"]
        _same_tasks(path, names, tasks, layout, turned="task" in names)
        ids = table["example_id"] if "example_id" in table.column_names else None
        values = [_numbers(path, table, task) for task in tasks]
        return np.stack(values), None if ids is None else _texts(path, ids)
    if "task" not in table.column_names:
        raise LetheError(
            f"{path}: found the columns {_some(table.column_names)}; expected for layout "
            "tasks_in_rows a column 'task' that names each line's task, and a column an example"
        )
    lines = _texts(path, table["task"])
    _same_tasks(path, lines, tasks, layout)
    ids = [name for name in table.column_names if name != "task"]
    if not ids:
        raise LetheError(f"{path}: holds no example: 'task' is its only column")
    values = np.stack([_numbers(path, table, name) for name in ids], axis=1)
    return values[[lines.index(task) for task in tasks]], ids


def _table(path: Path) -> pa.Table:
    kept = pa.csv.ConvertOptions(column_types={"example_id": pa.string(), "task": pa.string()})
    try:
        if path.suffix == ".csv":
            table = pa.csv.read_csv(path, convert_options=kept)
        else:
            table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise LetheError(f"{path}: not a readable {path.suffix[1:]} file ({error})")
    if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise LetheError(f"{path}: {len(twice)} column(s) stand twice: {_some(twice)}")
    if not table.num_rows:
        raise LetheError(f"{path}: holds a header but no line")
    return table


def _same_tasks(
    path: Path, seen: list[str], tasks: list[str], layout: str, turned: bool = False
) -> None:
    """Matrix and task table name the same tasks: what is left out is left out knowingly."""
    if twice := [name for name, count in Counter(seen).items() if count > 1]:
        raise LetheError(f"{path}: the task(s) {_some(twice)} stand twice")
    known = set(tasks)
    missing = [task for task in tasks if task not in set(seen)]
    extra = [name for name in seen if name not in known]
    if not missing and not extra:
        return
    where = "lines" if layout == "tasks_in_rows" else "columns"
    hint = "; its tasks seem to stand in lines: say layout: tasks_in_rows" if turned else ""
    raise LetheError(
        f"{path}: found {len(seen)} {where}, layout {layout}; expected one for each of the "
        f"{len(tasks)} tasks of the task table. Missing: {_some(missing)}; not in the task table: "
        f"{_some(extra)}{hint}"
    )


def _numbers(path: Path, table: pa.Table, name: str) -> np.ndarray:
    column = table[name]
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        seen = next(value for value in column.to_pylist() if not _is_number(value))
        raise LetheError(f"{path}: column {name!r} holds {seen!r}; expected numbers")
    return column.cast(pa.float64()).to_numpy()


def _is_number(value: Any) -> bool:
    try:
        return value is None or float(value) is not None
    except (TypeError, ValueError):
        return False


def _texts(path: Path, column: pa.ChunkedArray) -> list[str]:
    texts = column.cast(pa.string()).to_pylist()
    empty = [line for line, text in enumerate(texts, start=2) if not text]
    if empty:
        raise LetheError(f"{path}: line {empty[0]}: the name of the task or example is empty")
    return texts


def _names(names: Path, path: Path, count: int) -> list[str]:
    try:
        ids = [line.strip() for line in names.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LetheError(f"matrix.examples: {names}: not readable as text ({error})")
    if "" in ids:
        raise LetheError(f"{names}: line {ids.index('') + 1} is empty; expected an id a line")
    if len(ids) != count:
        raise LetheError(f"{names}: found {len(ids)} ids; expected {count}, the examples of {path}")
    return ids


def _some(names: Sequence[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(map(repr, names[:NAMED])) or "none") + more
