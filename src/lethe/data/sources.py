"""One small interface over every source of examples: `read_source(source, where, ...)`."""

import ast
import logging
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lethe.config.data_settings import FIELD, DatasetSource, Fields, FileSource, Source
from lethe.data import bigbench, prompts
from lethe.data.conversations import ChatReader
from lethe.data.examples import Example, draw_disjoint, draw_separately
from lethe.data.records import (
    Record,
    has_small_floats,
    matching_files,
    read_records,
    with_short_decimals,
    without_foreign_keys,
)
from lethe.data.unpacked_size import refuse_large_arrow
from lethe.data.values import NotText, look_up, value_as_text
from lethe.errors import LetheError, one_line

logger = logging.getLogger(__name__)

# Rows of a dataset that are converted at once.
ROWS_AT_ONCE = 1000
# Read for `all`; the first is the library's own folder.
STDLIB_FOLDERS = ("", "asyncio", "json", "email", "http", "logging", "concurrent", "importlib")


def read_source(
    source: Source, where: str, *, archive: Path | None = None, upstream: bool = False
) -> Iterator[Example]:
    """Reads the examples of a task or domain.

    Parameters
    ----------
    source
        An entry of the experiment's `sources`.
    where
        The part after `:` of `<source key>:<where>`. Its meaning depends on the source.
    archive
        The BIG-bench extract, which only sources of that kind need.
    upstream
        Whether the examples are those of an upstream domain, for which some sources join pairs
        to plain text.

    Raises
    ------
    LetheError
        If a file, field or task is missing or malformed, or there is no example in it.
    """
    if source.kind == "bigbench":
        joined = upstream and source.upstream_as == "text"
        read = bigbench.read_bigbench_as_text if joined else bigbench.read_bigbench
        return read(archive, where, source.shots)
    if source.kind == "stdlib":
        return _standard_library(where)
    if source.format == "chat":
        return _selected(source, _chats(_records(source, where), where))
    if source.format == "messages":
        return _selected(source, _first_exchanges(_records(source, where), where))
    return _selected(source, map(_reader(source, where), _records(source, where)))


def _chats(records: Iterator[Record], where: str) -> Iterator[Example]:
    """Reads chats with all their turns; logs at the end what was read and what was left out."""
    read = ChatReader()
    try:
        for record in records:
            yield _read_named(read, where, record)
    finally:  # A source with `first` stops earlier.
        level = logging.WARNING if read.leaves_out() else logging.INFO
        logger.log(level, "%s: %s", where, read.summary())


def _first_exchanges(records: Iterator[Record], where: str) -> Iterator[Example]:
    """Reads the first exchange of each conversation, as the paper does; logs the turns left out."""
    turns = 0
    conversations = 0
    try:
        for record in records:
            yield _read_named(prompts.read_messages, where, record)
            surplus = len(record["messages"]) - 2
            turns += max(0, surplus)
            conversations += surplus > 0
    finally:  # A source with `first` stops earlier.
        if turns:
            logger.warning(
                "%s: left out %d turn(s) of %d conversation(s), because format messages reads the "
                "first exchange only; format chat reads all turns",
                where,
                turns,
                conversations,
            )


def task_examples(
    source: Source,
    where: str,
    counts: dict[str, int],
    seed: int,
    task: str,
    archive: Path | None = None,
) -> tuple[list[Example], list[Example]]:
    """Draws training and evaluation examples of a task.

    At most `counts["train"]` and `counts["eval"]` examples are drawn. Evaluation examples are left
    out of training, unless the source has its own evaluation examples.

    Returns
    -------
    Training examples and evaluation examples.
    """
    examples = read_source(source, where, archive=archive)
    evaluation = source.evaluation() if isinstance(source, DatasetSource) else None
    if evaluation is None:
        return draw_disjoint(
            examples, train=counts["train"], evaluate=counts["eval"], seed=seed, task=task
        )
    return draw_separately(
        examples,
        read_source(evaluation, where),
        train=counts["train"],
        evaluate=counts["eval"],
        seed=seed,
        task=task,
    )


def _records(source: FileSource | DatasetSource, where: str) -> Iterator[Record]:
    if source.kind == "files":
        return _records_of_files(matching_files(source.folder, where))
    if source.files is not None:
        pattern = source.files.replace("{where}", where)
        return _records_of_files(_repository_files(source, pattern))
    return _records_of_dataset(source, where)


def _records_of_files(paths: list[Path]) -> Iterator[Record]:
    for path in paths:
        yield from read_records(path)


def _reader(source: FileSource | DatasetSource, where: str) -> prompts.RecordReader:
    """Makes the function that turns a record of this source into an example."""
    if source.format == "fields":
        read = partial(_fill, source)
    elif source.format == "mmlu":
        split = source.model_copy(update={"split": source.shots_split})
        solved = islice(_records_of_dataset(split, where), prompts.SHOTS)
        read = prompts.mmlu_reader(list(solved))
    elif source.format == "bbh":
        read = prompts.bbh_reader(Path(source.prompt_file(where)))
    else:
        read = prompts.read_dolly
    return partial(_read_named, read, where)


def _read_named(read: prompts.RecordReader, where: str, record: Record) -> Example:
    """Reads one record; every error names the task's `where` and the origin of the record."""
    try:
        return read(record)
    except LetheError as error:
        raise LetheError(f"{where}: {error} ({record.origin})")
    except (TypeError, KeyError, AttributeError) as error:
        raise LetheError(
            f"{where}: a record is not as its format wants it ({error!r}; {record.origin})"
        )


def _selected(fields: Fields, examples: Iterator[Example]) -> Iterator[Example]:
    """Drops texts that are too short, then keeps the first or a sample, as the source says."""
    long = (e for e in examples if e.text is None or len(e.text) > fields.longer_than)
    if fields.first is not None:
        return islice(long, fields.first)
    return long if fields.sample is None else _sample(long, fields.sample)


def _sample(examples: Iterator[Example], count: int) -> Iterator[Example]:
    """Draws examples in one pass, each with the same chance, and always the same ones.

    This is reservoir sampling (Vitter's algorithm R).
    """
    rng = random.Random(0)
    reservoir: list[Example] = []
    for number, example in enumerate(examples):
        if number < count:
            reservoir.append(example)
            continue
        position = rng.randrange(number + 1)
        if position < count:
            reservoir[position] = example
    yield from reservoir


def _fill(settings: Fields, record: Record) -> Example:
    # A record whose only field is its text, like a paragraph of a .txt file, is plain text.
    if settings.text is not None or set(record) == {"text"}:
        return Example(text=_fill_template(settings.text or "{text}", record))
    prompt = _fill_template(settings.prompt, record)
    return Example(prompt, _fill_template(settings.answer, record))


def _fill_template(template: str, record: Record) -> str:
    """Replaces `{field}` and nothing else, because str.format would reach into attributes.

    `{field}` is an error if the record has no such field; it is never taken literally.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        try:
            return value_as_text(look_up(record, name))
        except KeyError:
            raise LetheError(f"no field {name!r} for {template!r}; seen: {list(record)}")
        except NotText as error:
            raise LetheError(f"field {name!r} {error}")

    return FIELD.sub(fill, template).strip()


def _records_of_dataset(source: DatasetSource, where: str) -> Iterator[Record]:
    rows = _dataset(source)
    numbers = range(len(rows))
    if source.by is not None:
        numbers = _matching_rows(source, rows, where)
        rows = rows.select(numbers)
    for number, fields in zip(numbers, _fields_of_rows(rows), strict=True):
        yield Record(without_foreign_keys(fields), f"dataset {source.path}, record {number + 1}")


def _fields_of_rows(rows: Any) -> Iterator[dict[str, Any]]:
    """Yields the fields of each row of a dataset, its numbers as `with_short_decimals` has them."""
    if not any(map(has_small_floats, rows.features.arrow_schema.types)):
        yield from rows
        return
    for table in rows.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        for batch in table.to_batches():
            yield from with_short_decimals(batch).to_pylist()


def _matching_rows(source: DatasetSource, rows: Any, where: str) -> list[int]:
    """Numbers of the rows whose field `by` equals `where`."""
    if source.by not in rows.column_names:
        raise LetheError(f"{source.path}: no field {source.by!r}; seen: {rows.column_names}")
    values = []
    for number, value in enumerate(rows[source.by], start=1):
        if isinstance(value, list | dict | bytes):
            raise LetheError(
                f"{source.path}: field {source.by!r} of record {number} holds a value of type "
                f"{type(value).__name__}, which cannot be compared with {where!r}; name another "
                "field as by"
            )
        values.append(str(value))
    if source.by_until is not None:
        values = [value.split(source.by_until)[0] for value in values]
    numbers = [number for number, value in enumerate(values) if value == where]
    if not numbers:
        examples = sorted(set(values))[:20]
        raise LetheError(f"{source.path}: no record with {source.by} = {where!r}; seen: {examples}")
    return numbers


def _dataset(source: DatasetSource) -> Any:
    # Imported here because it takes seconds and most sources do not need it.
    import datasets

    try:
        if source.kind == "hub":
            return datasets.load_dataset(
                source.path, source.name, split=source.split, revision=source.revision
            )
        refuse_large_arrow(source.path)
        rows = datasets.load_from_disk(source.path)
    except LetheError:
        raise
    except Exception as error:
        # Its files may hold anything, and libraries fail on that in any way.
        raise LetheError(f"dataset {source.path}: cannot be loaded: {one_line(error)}")
    if isinstance(rows, datasets.Dataset):
        return rows
    if source.split not in rows:
        raise LetheError(f"dataset {source.path}: no split {source.split!r}; seen: {list(rows)}")
    return rows[source.split]


def _repository_files(source: DatasetSource, pattern: str) -> list[Path]:
    """Downloads files of a repository on the hub into the hub's own cache, once."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            source.path, repo_type="dataset", revision=source.revision, allow_patterns=[pattern]
        )
    except Exception as error:  # Some errors of a broken connection are no OSError.
        raise LetheError(f"dataset {source.path}: {pattern} cannot be fetched: {one_line(error)}")
    try:
        return matching_files(folder, pattern)
    except LetheError:
        raise LetheError(f"dataset {source.path}: has no file {pattern}; look at its files tab")


def _standard_library(where: str) -> Iterator[Example]:
    """Reads modules of this Python's standard library, in order of their names."""
    root = Path(sysconfig.get_path("stdlib"))
    folders = STDLIB_FOLDERS if where in ("", "all") else (where,)
    paths: list[Path] = []
    for folder in folders:
        paths += sorted((root / folder).glob("*.py"))
    if not paths:
        raise LetheError(f"the standard library in {root} has no package {where!r} with modules")
    for path in paths:
        text = path.read_text("utf-8", errors="replace")
        if len(text) > 400 and _parses(text):
            yield Example(text=text)


def _parses(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False
