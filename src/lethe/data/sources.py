"""One small interface over every source of examples: `examples(source, where, ...)`."""

import ast
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from lethe.config.data_settings import DatasetSource, Fields, FileSource, Source
from lethe.data import bigbench, prompts, records
from lethe.data.examples import Example, train_and_eval, train_and_own_eval
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
    return _some(source, map(_reader(source, where), _records(source, where)))


def task_examples(
    source: Source,
    where: str,
    counts: dict[str, int],
    seed: int,
    task: str,
    archive: Path | None = None,
) -> tuple[list[Example], list[Example]]:
    """Training and evaluation examples of a task, at most `counts["train"]` and `["eval"]`.

    Evaluation examples are left out of training, unless the source keeps its own.
    """
    found = examples(source, where, archive=archive)
    sizes = (counts["train"], counts["eval"], seed, task)
    own = source.evaluation() if isinstance(source, DatasetSource) else None
    if own is None:
        return train_and_eval(found, *sizes)
    return train_and_own_eval(found, examples(own, where), *sizes)


def _records(source: FileSource | DatasetSource, where: str) -> Iterator[dict[str, Any]]:
    if source.kind == "files":
        return _of_files(records.files(source.folder, where))
    if source.files is not None:
        return _of_files(_repository_files(source, source.files.replace("{where}", where)))
    return _rows(source, where)


def _of_files(paths: list[Path]) -> Iterator[dict[str, Any]]:
    return (record for path in paths for record in records.read(path))


def _reader(source: FileSource | DatasetSource, where: str) -> prompts.Read:
    """What turns a record into an example."""
    if source.format == "fields":
        return partial(_fill, source, where=where)
    if source.format == "mmlu":
        solved = _rows(source.model_copy(update={"split": source.shots_split}), where)
        read = prompts.mmlu(list(islice(solved, prompts.SHOTS)))
    elif source.format == "bbh":
        read = prompts.bbh(Path(source.prompt_file(where)))
    else:
        read = {"messages": prompts.messages, "dolly": prompts.dolly}[source.format]
    return partial(_named, read, where)


def _named(read: prompts.Read, where: str, record: dict[str, Any]) -> Example:
    try:
        return read(record)
    except LetheError as error:
        raise LetheError(f"{where}: {error}")
    except (TypeError, KeyError, AttributeError) as error:
        raise LetheError(f"{where}: a record is not as its format wants it ({error!r})")


def _some(fields: Fields, found: Iterator[Example]) -> Iterator[Example]:
    """Of the examples that are long enough those that the source asks for."""
    long = (e for e in found if e.text is None or len(e.text) > fields.longer_than)
    if fields.first is not None:
        return islice(long, fields.first)
    return long if fields.sample is None else _sample(long, fields.sample)


def _sample(found: Iterator[Example], count: int) -> Iterator[Example]:
    """Examples drawn in one pass, each as likely as another, always the same ones."""
    rng, kept = random.Random(0), []
    for number, example in enumerate(found):
        if number < count:
            kept.append(example)
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = example
    yield from kept


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


def _rows(source: DatasetSource, where: str) -> Iterator[dict[str, Any]]:
    rows = _dataset(source)
    if source.by is None:
        return iter(rows)
    if source.by not in rows.column_names:
        raise LetheError(f"{source.path}: no field {source.by!r}; seen: {rows.column_names}")
    values = [str(value) for value in rows[source.by]]
    if source.by_until is not None:
        values = [value.split(source.by_until)[0] for value in values]
    chosen = [i for i, value in enumerate(values) if value == where]
    if not chosen:
        seen = sorted(set(values))[:20]
        raise LetheError(f"{source.path}: no record with {source.by} = {where!r}; seen: {seen}")
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


def _repository_files(source: DatasetSource, pattern: str) -> list[Path]:
    """Files of a repository on the hub, fetched once into the hub's own cache."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            source.path, repo_type="dataset", revision=source.revision, allow_patterns=[pattern]
        )
    except (OSError, ValueError) as error:
        raise LetheError(f"dataset {source.path}: {pattern} cannot be fetched: {error}")
    try:
        return records.files(folder, pattern)
    except LetheError:
        raise LetheError(f"dataset {source.path}: has no file {pattern}; look at its files tab")


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
