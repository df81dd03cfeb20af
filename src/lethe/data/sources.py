"""One small interface over every source of examples: `examples(source, where, ...)`."""

import ast
import csv
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lethe.config.examples import DatasetSource, Fields, FileSource, Source
from lethe.data import bigbench
from lethe.data.examples import Example
from lethe.errors import LetheError

# Names with spaces, dots or hyphens count; quotes do not, so that JSON in a prompt stays as it is.
_FIELD = re.compile(r"\{([\w][\w .:/-]*)\}")


def examples(
    source: Source, where: str, *, archive: Path | None = None, upstream: bool = False
) -> Iterator[Example]:
    """The examples of a task or domain.

    Parameters
    ----------
    source
        An entry of the experiment's `sources`.
    where
        The part after `:` of `<source key>:<where>`; its meaning is the source's.
    archive
        The BIG-bench extract, needed by sources of that kind only.
    upstream
        For an upstream domain, where a source may say that pairs are joined to plain text.

    Raises
    ------
    LetheError
        If there is no such file, field or task, or nothing is in it.
    """
    if source.kind == "bigbench":
        joined = upstream and source.upstream_as == "text"
        read = bigbench.read_as_text if joined else bigbench.read
        return read(archive, where, source.shots)
    if source.kind == "stdlib":
        return _standard_library(where)
    records = _file_records(source, where) if source.kind == "files" else _rows(source, where)
    return (_fill(source, record, where) for record in records)


def _fill(fields: Fields, record: dict[str, Any], where: str) -> Example:
    # A record that holds nothing but text, like a paragraph of a .txt file, is plain text.
    if fields.text is not None or set(record) == {"text"}:
        return Example(text=_template(fields.text or "{text}", record, where))
    prompt = _template(fields.prompt, record, where)
    return Example(prompt, _template(fields.answer, record, where))


def _template(template: str, record: dict[str, Any], where: str) -> str:
    """Fills `{field}` and nothing else: str.format would also reach into attributes.

    `{field}` of a record without that field is refused, not taken literally.
    """
    wanted = _FIELD.findall(template)
    if missing := [field for field in wanted if field not in record]:
        raise LetheError(f"{where}: no field {missing[0]!r} for {template!r}; seen: {list(record)}")
    return _FIELD.sub(lambda match: _as_string(record[match[1]]), template).strip()


def _as_string(value: Any) -> str:
    return "" if value is None else str(value)


def _file_records(source: FileSource, where: str) -> Iterator[dict[str, Any]]:
    path = Path(source.folder) / where
    if not path.is_file():
        raise LetheError(f"no such file: {path}")
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet, ".txt": _paragraphs}
    if path.suffix not in readers:
        raise LetheError(f"{path}: ends with {path.suffix!r}; known: {', '.join(readers)}")
    return _readable(path, readers[path.suffix](path))


def _readable(path: Path, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records; what is wrong with the file's bytes is said with its name."""
    try:
        yield from records
    except UnicodeDecodeError as error:
        raise LetheError(f"{path}: is not UTF-8 ({error}); save it as UTF-8")
    except (csv.Error, pa.ArrowException) as error:
        raise LetheError(f"{path}: is not readable as {path.suffix[1:]} ({error})")


# utf-8-sig: spreadsheets write a mark before the first field, which must not be part of its name.
def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise LetheError(f"{path}, line {number}: not JSON ({error})")
            if not isinstance(record, dict):
                raise LetheError(f"{path}, line {number}: an object is wanted: {line[:80]!r}")
            yield record


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    for paragraph in re.split(r"\n\s*\n", path.read_text("utf-8-sig")):
        if paragraph.strip():
            yield {"text": paragraph.strip()}


def _rows(source: DatasetSource, where: str) -> Iterator[dict[str, Any]]:
    rows = _dataset(source)
    if source.by is None:
        return iter(rows)
    if source.by not in rows.column_names:
        raise LetheError(f"{source.path}: no field {source.by!r}; seen: {rows.column_names}")
    chosen = [i for i, value in enumerate(rows[source.by]) if str(value) == where]
    if not chosen:
        values = sorted({str(value) for value in rows[source.by]})[:20]
        raise LetheError(f"{source.path}: no record with {source.by} = {where!r}; seen: {values}")
    return iter(rows.select(chosen))


def _dataset(source: DatasetSource) -> Any:
    # Imported here: it takes seconds and most sources do without it.
    import datasets

    try:
        if source.kind == "hub":
            return datasets.load_dataset(
                source.path, source.name, split=source.split, revision=source.revision
            )
        rows = datasets.load_from_disk(source.path)
    except (OSError, ValueError) as error:
        raise LetheError(f"dataset {source.path}: cannot be loaded: {error}")
    if isinstance(rows, datasets.Dataset):
        return rows
    if source.split not in rows:
        raise LetheError(f"dataset {source.path}: no split {source.split!r}; seen: {list(rows)}")
    return rows[source.split]


def _standard_library(where: str) -> Iterator[Example]:
    """Modules of this Python's standard library, in order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    packages = ("", "asyncio", "json", "email", "http", "logging", "concurrent", "importlib")
    folders = packages if where in ("", "all") else (where,)
    found = [path for folder in folders for path in sorted((root / folder).glob("*.py"))]
    if not found:
        raise LetheError(f"the standard library in {root} has no package {where!r} with modules")
    for path in found:
        text = path.read_text("utf-8", errors="replace")
        if len(text) > 400 and _parses(text):
            yield Example(text=text)


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False
