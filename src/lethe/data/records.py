"""Records out of local files: .jsonl, .json, .csv, .parquet and .txt, as they are or compressed."""

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import LetheError

COMPRESSED = (".gz", ".zst", ".zstd")


def files(folder: Path | str, where: str) -> list[Path]:
    """The file `where` under a folder, or the files that match it as a pattern, in order.

    Raises
    ------
    LetheError
        If there is none.
    """
    folder = Path(folder)
    found = sorted(folder.glob(where)) if "*" in where else [folder / where]
    if not found or not found[0].is_file():
        raise LetheError(f"no such file: {folder / where}")
    return found


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file.

    .json holds a list of objects, an object with such a list as `examples`, or, as many
    collections name their JSON lines, an object a line. .txt is a paragraph a record, `text`.

    Raises
    ------
    LetheError
        If the file's kind is not known or its bytes are not of it: with file and line.
    """
    readers = {
        **{".jsonl": _jsonl, ".json": _json, ".csv": _csv},
        **{".parquet": _parquet, ".txt": _paragraphs},
    }
    kind = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    if kind not in readers:
        raise LetheError(f"{path}: ends with {path.suffix!r}; known: {', '.join(readers)}")
    return _readable(path, kind, readers[kind](path))


def _readable(path: Path, kind: str, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records; what is wrong with the file's bytes is said with its name."""
    try:
        yield from records
    except UnicodeDecodeError as error:
        raise LetheError(f"{path}: is not UTF-8 ({error}); save it as UTF-8")
    except (csv.Error, pa.ArrowException, OSError, EOFError) as error:
        raise LetheError(f"{path}: is not readable as {kind[1:]} ({error})")


def _open(path: Path) -> io.TextIOBase:
    # utf-8-sig: spreadsheets write a mark first, which must not be part of a field's name.
    text = {"encoding": "utf-8-sig", "newline": ""}
    if path.suffix == ".gz":
        return gzip.open(path, "rt", **text)
    if path.suffix in (".zst", ".zstd"):
        return io.TextIOWrapper(pa.input_stream(str(path), compression="zstd"), **text)
    return path.open(**text)


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _object(line, path, number)


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise LetheError(f"{path}, line {number}: not JSON ({error})")
    if not isinstance(record, dict):
        raise LetheError(f"{path}, line {number}: an object is wanted: {line[:80]!r}")
    return record


def _json(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        first = next(lines, "")
        if _is_record(first):
            yield _object(first, path, 1)
            for number, line in enumerate(lines, start=2):
                if line.strip():
                    yield _object(line, path, number)
            return
        try:
            content = json.loads(first + lines.read())
        except ValueError as error:
            raise LetheError(f"{path}: not JSON ({error})")
    records = content.get("examples") if isinstance(content, dict) else content
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise LetheError(f"{path}: a list of objects is wanted, or an object with one as examples")
    yield from records


def _is_record(line: str) -> bool:
    """Whether a line is a record by itself, so that the file holds one a line."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and not isinstance(record.get("examples"), list)


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    with _open(path) as lines:
        text = lines.read().replace("\r\n", "\n")
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.strip():
            yield {"text": paragraph.strip()}
