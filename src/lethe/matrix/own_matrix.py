"""Reads a Z of your own from .npy, .csv or .parquet.

The orientation is always stated, never guessed, because a square matrix fits both ways and a
transposed Z gives plausible but wrong results.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from lethe.data.records import refuse_lfs_pointer
from lethe.data.unpacked_size import refuse_large_parquet
from lethe.errors import LetheError, one_line
from lethe.matrix.forgetting_matrix import Matrix

# Nats. No measured cell comes near; the authors' files use it for cells that were not measured.
UNMEASURED = -100.0
LAYOUTS = ("tasks_in_rows", "tasks_in_columns")
# np.load reads an array or a zip of arrays.
NUMPY_MAGIC = (b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06")
PICKLE_MAGIC = 0x80  # first byte of a pickle, from protocol 2 on
NAMED = 5  # ids and tasks that a message names before it only counts
SMALLEST_BLOCK = 1 << 20  # bytes that the CSV reader parses at once, at least
LARGEST_BLOCK = (1 << 31) - 1
# Text that stands for a missing cell: empty, NA, NaN, null and the like.
MISSING = pa.array(pa.csv.ConvertOptions().null_values)
# Columns that data frames add when they are saved with their index.
INDEX_NAMES = re.compile(r"|index|level_\d+|Unnamed: \d+|__index_level_\d+__")
# Column names that nobody gives to an example: such a column is never read as one.
UNNAMED = re.compile(r"|Unnamed: \d+|__index_level_\d+__")


def read_own_matrix(
    path: Path | str, tasks: list[str], layout: str, examples: Path | str | None = None
) -> Matrix:
    """Reads a Z as it is, infinite cells included; `infinite_to_nan` prepares it for computing.

    .npy: a two-dimensional array of numbers, its tasks in the order of `tasks`. .csv and .parquet
    with tasks in columns: one line per example, one column per task, and optionally a column
    `example_id`. With tasks in rows: one line per task, which the column `task` names, and one
    column per example. Line numbers that a data frame saved as an extra column, and an empty
    column after a trailing comma, are left out; `Matrix.notes` says so.

    Parameters
    ----------
    layout
        tasks_in_rows or tasks_in_columns.
    examples
        File of names, one example id per line, for a file that holds no ids itself. Without ids
        the examples are numbered.

    Raises
    ------
    LetheError
        If the file does not fit layout, tasks or names, holds pickled objects, or a value is not
        a number. The message says what was seen and what is expected.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise LetheError(f"matrix.layout: {layout!r}; use one of {', '.join(LAYOUTS)}")
    notes: list[str] = []
    ids: list[str] | None = None
    if path.suffix == ".npy":
        values = _read_array(path, tasks, layout, named_by="lines of the task table")
    elif path.suffix in (".csv", ".parquet"):
        table, notes = _read_table(path)
        if layout == "tasks_in_columns":
            values, ids = _with_tasks_in_columns(path, table, tasks)
        else:
            values, ids = _with_tasks_in_rows(path, table, tasks)
    else:
        raise LetheError(f"{path}: ends with {path.suffix!r}; use .npy, .csv or .parquet")
    if examples is not None:
        if ids is not None:
            raise LetheError(
                f"matrix.examples: {path} names its examples itself; remove the key or the names"
            )
        ids = _read_names(Path(examples), path, values.shape[1])
    if ids is None:
        ids = _numbered(values.shape[1])
    duplicates = _duplicates(ids)
    if duplicates:
        raise LetheError(
            f"{path}: {len(duplicates)} example id(s) stand twice: {_some(duplicates)}"
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float32)
    return Matrix(values=values, tasks=list(tasks), example_ids=ids, notes=notes)


def infinite_to_nan(matrix: Matrix) -> Matrix:
    """The matrix with infinite cells as NaN, because they are no measurements either."""
    if np.isfinite(matrix.values).all():
        return matrix
    values = np.where(np.isfinite(matrix.values), matrix.values, np.float32(np.nan))
    return Matrix(
        values=values, tasks=matrix.tasks, example_ids=matrix.example_ids, notes=matrix.notes
    )


def read_named_matrix(path: Path, meta: Path, tasks: list[str]) -> Matrix:
    """Reads a Z in the format of the paper's authors: an array, its rows named in another file.

    The rows of `tasks` are read and all others are left out. Cells at or below -100, which stand
    for unmeasured cells, become NaN (protocol: paper, section 1.4).

    Parameters
    ----------
    path
        .npy, tasks in rows.
    meta
        JSON: for each collection the start and stop of its rows, and the names of its tasks in
        order.

    Raises
    ------
    LetheError
        If the array holds pickled objects or no numbers, the ranges do not name every row once,
        a name stands twice, or a task is not among them.
    """
    rows = _row_names(meta)
    array = _read_array(path, rows, "tasks_in_rows", named_by=f"rows that {meta} names")
    missing = [task for task in tasks if task not in rows]
    if missing:
        raise LetheError(
            f"{meta}: names no row for {len(missing)} of the task table's tasks: {_some(missing)}; "
            f"it names {_some(rows)}"
        )
    values = array[[rows.index(task) for task in tasks]].astype(np.float32)
    values[values <= UNMEASURED] = np.nan
    return Matrix(values=values, tasks=list(tasks), example_ids=_numbered(values.shape[1]))


def _numbered(count: int) -> list[str]:
    return [f"example-{number:06d}" for number in range(count)]


def _row_names(meta: Path) -> list[str]:
    """The name of each row, from ranges that follow each other without a gap.

    Characters that a task table does not allow in names, such as spaces, are replaced by `_`.
    """
    try:
        collections = json.loads(meta.read_text("utf-8-sig"))
        ranges = []
        for name, collection in collections.items():
            ranges.append((collection["start"], collection["stop"], name))
        ranges.sort()
        names = []
        for _, _, name in ranges:
            for task in collections[name]["tasks"]:
                names.append(re.sub(r"[^A-Za-z0-9_.-]", "_", str(task)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LetheError(
            f"{meta}: not readable as JSON of collection -> start, stop, tasks ({error!r})"
        )
    row = 0
    for start, stop, name in ranges:
        count = len(collections[name]["tasks"])
        if start != row or stop - start != count:
            raise LetheError(
                f"{meta}: {name} has rows {start} to {stop} and {count} tasks; expected it to "
                f"start at {row} and to name every row once"
            )
        row = stop
    duplicates = _duplicates(names)
    if duplicates:
        raise LetheError(f"{meta}: the task(s) {_some(duplicates)} stand twice")
    return names


def _read_array(path: Path, tasks: list[str], layout: str, named_by: str) -> np.ndarray:
    """Values (M, N) of a .npy file."""
    values = _load_array(path)
    description = f"{path}: has shape {values.shape} of {values.dtype}"
    shape = f"({len(tasks)}, N)" if layout == "tasks_in_rows" else f"(N, {len(tasks)})"
    expected = f"expected {shape} for the {len(tasks)} {named_by}"
    if values.dtype.kind not in "fiub":
        raise LetheError(f"{description}; expected numbers")
    if values.ndim != 2 or 0 in values.shape:
        raise LetheError(f"{description}; {expected}")
    rows = values if layout == "tasks_in_rows" else values.T
    if rows.shape[0] != len(tasks):
        other_layout = LAYOUTS[1 - LAYOUTS.index(layout)]
        hint = f"; use layout: {other_layout}" if rows.shape[1] == len(tasks) else ""
        raise LetheError(f"{description}, layout {layout}; {expected}{hint}")
    return rows


def _load_array(path: Path) -> np.ndarray:
    _refuse_other_formats(path)
    try:
        values = np.load(path, allow_pickle=False)
    except Exception as error:
        # The header is parsed as Python, so that a damaged one may end in a SyntaxError, and its
        # shape may need more memory than there is.
        if "pickle" in str(error):
            _refuse_pickle(path)
        raise LetheError(f"{path}: not a readable .npy file ({one_line(error)})")
    if not isinstance(values, np.ndarray):
        values.close()
        raise LetheError(f"{path}: is an .npz archive; expected one array saved by np.save")
    return values


def _refuse_other_formats(path: Path) -> None:
    """Names the format of a file that numpy would take for a pickle."""
    refuse_lfs_pointer(path)
    try:
        with open(path, "rb") as file:
            beginning = file.read(24)
    except OSError as error:
        raise LetheError(f"{path}: not a readable .npy file ({error})")
    if not beginning or beginning.startswith(NUMPY_MAGIC):
        return
    if beginning[0] == PICKLE_MAGIC:
        _refuse_pickle(path)
    raise LetheError(f"{path}: is no .npy file (begins with {beginning!r}); save it with np.save")


def _refuse_pickle(path: Path) -> NoReturn:
    raise LetheError(
        f"{path}: holds pickled Python objects, which can run code and are never loaded; "
        "expected plain numbers: np.save(path, np.asarray(z, dtype='float32'))"
    )


def _with_tasks_in_columns(
    path: Path, table: pa.Table, tasks: list[str]
) -> tuple[np.ndarray, list[str] | None]:
    names = [name for name in table.column_names if name != "example_id"]
    _check_tasks(path, names, tasks, layout="tasks_in_columns")
    ids = None
    if "example_id" in table.column_names:
        ids = _texts(path, table["example_id"])
    values = [_numbers(path, table[task], task) for task in tasks]
    return np.stack(values), ids


def _with_tasks_in_rows(
    path: Path, table: pa.Table, tasks: list[str]
) -> tuple[np.ndarray, list[str]]:
    if "task" not in table.column_names:
        raise LetheError(
            f"{path}: has the columns {_some(table.column_names)}; expected for layout "
            "tasks_in_rows a column 'task' that names each line's task, and one column per example"
        )
    lines = _texts(path, table["task"])
    _check_tasks(path, lines, tasks, layout="tasks_in_rows")
    ids = [name for name in table.column_names if name != "task"]
    if not ids:
        raise LetheError(f"{path}: holds no example: 'task' is its only column")
    values = np.stack([_numbers(path, table[name], name) for name in ids], axis=1)
    return values[[lines.index(task) for task in tasks]], ids


def _read_table(path: Path) -> tuple[pa.Table, list[str]]:
    """The table without index columns, and a note per column that was left out."""
    refuse_lfs_pointer(path)
    try:
        if path.suffix == ".csv":
            table = _read_csv(path)
        else:
            refuse_large_parquet(path)
            table = pq.read_table(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise LetheError(f"{path}: not a readable {path.suffix[1:]} file ({error})")
    if not table.num_rows:
        raise LetheError(f"{path}: holds a header but no line")
    table, notes = _without_index(path, table)
    duplicates = _duplicates(table.column_names)
    if duplicates:
        raise LetheError(f"{path}: {len(duplicates)} column(s) stand twice: {_some(duplicates)}")
    for separator in (";", "\t"):
        if path.suffix == ".csv" and table.num_columns == 1 and separator in table.column_names[0]:
            raise LetheError(
                f"{path}: its columns seem to be separated by {separator!r}; save it with commas, "
                "and with points in numbers"
            )
    return table, notes


def _read_csv(path: Path) -> pa.Table:
    """Reads numbers as float64; if a cell is no number, all cells as text."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        header = next(csv.reader(stream), [])
    with path.open("rb") as stream:
        longest = max((len(line) for line in stream), default=0)
    # A line must fit into a block, and a wide Z has lines of many megabytes.
    block = min(max(SMALLEST_BLOCK, 2 * longest), LARGEST_BLOCK)
    reading = pa.csv.ReadOptions(block_size=block)
    # One type for the complete file: guessed from the first block, integers would exclude 0.5.
    numbers = dict.fromkeys(header, pa.float64())
    texts = dict.fromkeys(header, pa.string())
    for name in ("example_id", "task"):
        numbers[name] = pa.string()
    try:
        converting = pa.csv.ConvertOptions(column_types=numbers)
        return pa.csv.read_csv(path, read_options=reading, convert_options=converting)
    except pa.ArrowInvalid:
        # A table of another shape fails again here; text is converted cell by cell later.
        converting = pa.csv.ConvertOptions(column_types=texts)
        return pa.csv.read_csv(path, read_options=reading, convert_options=converting)


def _without_index(path: Path, table: pa.Table) -> tuple[pa.Table, list[str]]:
    """Leaves out columns of line numbers and empty columns that no one named.

    Raises
    ------
    LetheError
        If a column without a name holds anything else.
    """
    positions = []
    notes = []
    for position, name in enumerate(table.column_names):
        column = table.column(position)
        if not INDEX_NAMES.fullmatch(name):
            positions.append(position)
        elif UNNAMED.fullmatch(name) and _is_empty(column):
            notes.append(f"{path}: left out column {position + 1}, which has no name and no value")
        elif _is_line_numbers(column):
            notes.append(
                f"{path}: left out column {position + 1} ({name!r}), which holds line numbers"
            )
        elif UNNAMED.fullmatch(name):
            raise LetheError(
                f"{path}: column {position + 1} ({name!r}) has no name of its own, and holds "
                f"{column[0].as_py()!r} in its first line; name it (example_id, task, or an "
                "example), or remove it"
            )
        else:
            positions.append(position)
    return table.select(positions), notes


def _is_empty(column: pa.ChunkedArray) -> bool:
    return column.null_count == len(column) or not any(
        value.is_valid and value.as_py() != "" for value in column
    )


def _is_line_numbers(column: pa.ChunkedArray) -> bool:
    """Whether the column counts the lines, from 0 or from 1."""
    try:
        numbers = column.cast(pa.float64()).to_numpy()
    except pa.ArrowException:
        return False
    lines = np.arange(len(numbers))
    # A single line numbered 0 or 1 may as well be a measurement.
    return len(lines) > 1 and bool(
        np.array_equal(numbers, lines) or np.array_equal(numbers, lines + 1)
    )


def _check_tasks(path: Path, names: list[str], tasks: list[str], layout: str) -> None:
    """Refuses a matrix that does not name exactly the tasks of the task table."""
    duplicates = _duplicates(names)
    if duplicates:
        raise LetheError(f"{path}: the task(s) {_some(duplicates)} stand twice")
    missing = sorted(set(tasks) - set(names), key=tasks.index)
    extra = [name for name in names if name not in set(tasks)]
    if not missing and not extra:
        return
    axis = "lines" if layout == "tasks_in_rows" else "columns"
    hint = ""
    if layout == "tasks_in_columns" and "task" in names:
        hint = "; its tasks seem to stand in lines: use layout: tasks_in_rows"
    raise LetheError(
        f"{path}: has {len(names)} {axis}, layout {layout}; expected one for each of the "
        f"{len(tasks)} tasks of the task table. Missing: {_some(missing)}; not in the task table: "
        f"{_some(extra)}{hint}"
    )


def _numbers(path: Path, column: pa.ChunkedArray, name: str) -> np.ndarray:
    """The column as float64, missing cells as NaN.

    Raises
    ------
    LetheError
        Naming the column with its type, or with the line and cell that are no number.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _text_to_numbers(path, column, name)
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise LetheError(
            f"{path}: column {name!r} has the type {kind}, seen {_first_value(column)!r}; expected "
            "numbers"
        )
    return column.cast(pa.float64(), safe=False).to_numpy()


def _first_value(column: pa.ChunkedArray) -> object:
    return next((value.as_py() for value in column if value.is_valid), None)


def _text_to_numbers(path: Path, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    texts = pc.if_else(pc.is_in(texts, value_set=MISSING), None, texts)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        pass
    numbers = []
    for line, text in enumerate(texts.to_pylist(), start=2):
        try:
            numbers.append(_text_to_number(text))
        except ValueError:
            location = f", line {line}" if path.suffix == ".csv" else f", row {line - 1}"
            raise LetheError(
                f"{path}{location}: column {name!r} holds {text!r} (type {column.type}); expected "
                "numbers"
            )
    return pa.chunked_array([pa.array(numbers, pa.float64())])


def _text_to_number(text: str | None) -> float | None:
    if text is None:
        return None
    truth = {"true": 1.0, "false": 0.0}.get(text.lower())
    # float() would also take 1_000, which no table writes for a number.
    if truth is None and "_" in text:
        raise ValueError(text)
    return float(text) if truth is None else truth


def _texts(path: Path, column: pa.ChunkedArray) -> list[str]:
    texts = column.cast(pa.string()).to_pylist()
    for line, text in enumerate(texts, start=2):
        if not text:
            raise LetheError(f"{path}: line {line}: the name of the task or example is empty")
    return texts


def _read_names(names: Path, path: Path, count: int) -> list[str]:
    try:
        ids = [line.strip() for line in names.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LetheError(f"matrix.examples: {names}: not readable as text ({error})")
    if "" in ids:
        raise LetheError(f"{names}: line {ids.index('') + 1} is empty; expected one id per line")
    if len(ids) != count:
        raise LetheError(f"{names}: has {len(ids)} ids; expected {count}, the examples of {path}")
    return ids


def _duplicates(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return []
    return [name for name, count in Counter(names).items() if count > 1]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:NAMED]) or "none"
    more = len(names) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
