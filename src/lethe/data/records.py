"""Records from local files: .jsonl, .json, .csv, .parquet and .txt, plain or compressed."""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lethe.config.csv_lines import CsvError, header_problem, shape_problem, split_csv
from lethe.data.unpacked_size import refuse_large_parquet, unpacked_bound, unpacks_too_far
from lethe.errors import LetheError
from lethe.files import matching_paths

COMPRESSED = (".gz", ".zst", ".zstd")

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class Record(dict[str, Any]):
    """The fields of one record, and its origin, such as `a.jsonl, line 3`."""

    def __init__(self, fields: dict[str, Any], origin: str):
        super().__init__(fields)
        self.origin = origin


def matching_files(folder: Path | str, where: str) -> list[Path]:
    """Lists the file `where` under a folder, or the files that match it as a pattern, in order.

    Raises
    ------
    LetheError
        If there is no such file.
    """
    folder = Path(folder)
    try:
        if "*" in where:
            paths = matching_paths(folder, where)
        else:
            paths = [folder / where] if (folder / where).is_file() else []
        if paths:
            return paths
    except (OSError, ValueError, NotImplementedError) as error:
        # The name is too long, or no pattern.
        raise LetheError(f"no such file: {str(folder / where)[:300]} ({error.args[-1]})")
    raise LetheError(f"no such file: {folder / where}")


def refuse_lfs_pointer(path: Path) -> None:
    """Makes sure that a file is not a Git LFS pointer to the real file.

    Raises
    ------
    LetheError
        Naming the file, if it is one. A file that cannot be opened is left to its reader.
    """
    try:
        with open(path, "rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except OSError:
        return
    if start == _LFS_POINTER:
        raise LetheError(
            f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in its "
            "folder"
        )


def read_records(path: Path) -> Iterator[Record]:
    """Reads the records of a file.

    A .json file holds a list of objects, an object with such a list as `examples`, or one object
    per line, as many collections name their JSON lines. A .txt file holds one record per
    paragraph, with the field `text`.

    Raises
    ------
    LetheError
        If the kind of file is unknown or its content is not of that kind, with file and line.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _json_lines,
        ".json": _json,
        ".csv": csv_records,
        ".parquet": _parquet,
        ".txt": _paragraphs,
    }
    kind = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if kind not in readers:
        raise LetheError(f"{path}: ends with {path.suffix!r}; known: {', '.join(readers)}")
    return _errors_named(path, kind, readers[kind](path))


def _errors_named(path: Path, kind: str, records: Iterator[Record]) -> Iterator[Record]:
    """Yields the records and turns every error of reading into one that names the file."""
    refuse_lfs_pointer(path)
    try:
        yield from records
    except UnicodeDecodeError as error:
        raise LetheError(f"{path}: is not UTF-8 ({error}); save it as UTF-8")
    except CsvError as error:
        raise LetheError(f"{path}, {error}")
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise LetheError(f"{path}: is not readable as {kind[1:]} ({error})")


def _open(path: Path) -> io.TextIOBase:
    # utf-8-sig: spreadsheets write a byte order mark, which must not be part of a field's name.
    if path.suffix not in COMPRESSED:
        return path.open(encoding="utf-8-sig", newline="")
    if path.suffix == ".gz":
        # Closed with the stream that reads it.
        unpacked = gzip.open(path, "rb")  # noqa: SIM115
    else:
        unpacked = pa.input_stream(str(path), compression="zstd")
    stream = io.BufferedReader(_Bounded(unpacked, path))
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")


class _Bounded(io.RawIOBase):
    """Unpacked bytes of a compressed file, up to a bound: a small file may unpack to petabytes."""

    def __init__(self, unpacked: Any, path: Path):
        self._unpacked = unpacked
        self._path = path
        self._bound = unpacked_bound(path)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._unpacked.read(len(buffer))
        self._count += len(content)
        if self._count > self._bound:
            raise unpacks_too_far(self._path, self._count, self._bound)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._unpacked.close()
        super().close()


def _json_lines(path: Path) -> Iterator[Record]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(line, path, number)


def _parse(text: str, origin: str) -> Any:
    """Values of a JSON text; a field that stands twice in one object is refused."""

    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            repeated = [name for name, count in counts.items() if count > 1]
            raise LetheError(
                f"{origin}: the field(s) {repeated} stand twice in one object; rename or remove one"
            )
        return fields

    try:
        return json.loads(text, object_pairs_hook=refuse_repeated)
    except json.JSONDecodeError as error:
        # Its own line is that within the text, which may be one line of a file.
        location = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise LetheError(f"{origin}: not JSON ({error.msg}: {location}column {error.colno})")
    except (ValueError, RecursionError) as error:
        raise LetheError(f"{origin}: not JSON ({error})")


def _object(line: str, path: Path, number: int) -> Record:
    fields = _parse(line, f"{path}, line {number}")
    if not isinstance(fields, dict):
        hint = ""
        if isinstance(fields, list):
            hint = (
                "; if the whole file is one list of records, name it .json; if each line is a list "
                'of turns, write it as {"messages": [...]}'
            )
        raise LetheError(f"{path}, line {number}: an object is wanted: {line[:80]!r}{hint}")
    return Record(fields, f"{path}, line {number}")


def _json(path: Path) -> Iterator[Record]:
    with _open(path) as lines:
        first = next(lines, "")
        if _is_record(first):
            record = _object(first, path, 1)
            _refuse_columns(record, path)
            yield record
            for number, line in enumerate(lines, start=2):
                if line.strip():
                    yield _object(line, path, number)
            return
        content = _parse(first + lines.read(), str(path))
    records = content
    if isinstance(content, dict):
        _refuse_columns(content, path)
        records = content.get("examples")
    if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
        raise LetheError(f"{path}: a list of objects is wanted, or an object with one as examples")
    for number, fields in enumerate(records, start=1):
        yield Record(fields, f"{path}, record {number}")


def _is_record(line: str) -> bool:
    """Whether the first line is a record by itself, so that the file holds one per line."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and not isinstance(fields.get("examples"), list)


def _refuse_columns(content: dict[str, Any], path: Path) -> None:
    """Refuses a data frame that was saved by columns: each an object of row numbers."""
    columns = list(content.values())
    if not columns or not all(isinstance(column, dict) and column for column in columns):
        return
    rows = set(columns[0])
    if all(key.isdigit() for key in rows) and all(set(column) == rows for column in columns):
        raise LetheError(
            f"{path}: holds the columns {list(content)[:8]} with row numbers, but records are "
            "wanted: a list of objects, or one object per line (pandas writes it with "
            'to_json(..., orient="records", lines=True) as .jsonl)'
        )


def csv_records(path: Path) -> Iterator[Record]:
    """Yields the records of a CSV file with a header; every line has a cell per column.

    Raises
    ------
    LetheError
        If the header or a line has the wrong shape. Errors of reading are not translated.
    """
    with _open(path) as stream:
        lines = split_csv(stream)
        header = next(lines, None)
        if header is None:
            return
        columns = header.cells
        if problem := header_problem(columns):
            raise LetheError(f"{path}: {problem}")
        for line in lines:
            if problem := shape_problem(line, columns):
                raise LetheError(f"{path}, {problem}")
            fields = dict(zip(columns, line.cells, strict=True))
            yield Record(fields, f"{path}, line {line.number}")


def _parquet(path: Path) -> Iterator[Record]:
    refuse_large_parquet(path)
    number = 0
    for batch in pq.ParquetFile(path).iter_batches():
        for fields in with_short_decimals(batch).to_pylist():
            number += 1
            yield Record(without_foreign_keys(fields), f"{path}, row {number}")


# Columns of turns and tools. Their objects differ from row to row.
_OBJECTS = ("messages", "conversations", "prompt", "completion", "tools", "functions")


def without_foreign_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """A row whose turns and tools have their own keys only.

    In Arrow all objects of a column have the same keys, so that a call of one tool has the
    arguments of all others as null. These would be written into the chat.
    """
    for name in _OBJECTS:
        if isinstance(fields.get(name), list):
            fields[name] = _without_nulls(fields[name])
    return fields


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def with_short_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Numbers of 32 bits with the fewest decimals that tell them apart: 0.1 stays 0.1.

    As 64 bits, 0.1 would be written into a prompt as 0.10000000149011612. Numbers of 16 bits are
    written as their values in 32 bits. Numbers in lists, structs and maps are written so, too.
    """
    for position, field in enumerate(batch.schema):
        if has_small_floats(field.type):
            column = batch.column(position).cast(_replace_small_floats(field.type, pa.float32()))
            column = column.cast(_replace_small_floats(field.type, pa.string()))
            column = column.cast(_replace_small_floats(field.type, pa.float64()))
            batch = batch.set_column(position, field.name, column)
    return batch


def has_small_floats(kind: pa.DataType) -> bool:
    """Whether a type is, or holds, numbers with decimals of 16 or 32 bits."""
    return _replace_small_floats(kind, pa.float64()) != kind


def _replace_small_floats(kind: pa.DataType, replacement: pa.DataType) -> pa.DataType:
    """The type with another one in place of each number with decimals of 16 or 32 bits."""

    def replace_in(field: pa.Field) -> pa.Field:
        return field.with_type(_replace_small_floats(field.type, replacement))

    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        return replacement
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(replace_in(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(replace_in(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(replace_in(kind.value_field))
    if pa.types.is_struct(kind):
        return pa.struct([replace_in(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(replace_in(kind.key_field), replace_in(kind.item_field))
    return kind


def _paragraphs(path: Path) -> Iterator[Record]:
    with _open(path) as stream:
        text = stream.read().replace("\r\n", "\n")
    number = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip():
            number += 1
            yield Record({"text": paragraph.strip()}, f"{path}, paragraph {number}")
