"""BIG-bench tasks from the PyPI source package (Apache-2.0), without installing it."""

import difflib
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lethe.config.data_settings import BigBenchSource
from lethe.data.examples import Example
from lethe.data.packages import Package, cached_contents
from lethe.data.values import NotText, value_as_text
from lethe.errors import LetheError
from lethe.files import atomic_write

FOLDER = "bigbench/benchmark_tasks/"
# Bytes. A few tasks of hundreds of megabytes are left out of the extract; no upstream text is.
LARGEST_TASK = 40_000_000
# Level of deflate. The usual level takes three times as long and saves a fifth.
LEVEL = 1


def extract(package: Path, archive: Path) -> int:
    """Repacks the files that hold examples into one zip with random access.

    To read a member of a compressed tar, everything before it must be read, so that a task would
    take seconds each time. In a zip it takes milliseconds.

    Returns
    -------
    The number of files in the zip.

    Raises
    ------
    LetheError
        If the package is damaged or holds no BIG-bench task.
    """
    with atomic_write(archive) as part:
        try:
            count = _repack(package, part)
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise LetheError(f"{package}: is damaged ({error}); download it again")
        if not count:
            raise LetheError(f"{package}: holds no BIG-bench task under {FOLDER}")
    return count


def package_of(source: BigBenchSource) -> Package:
    """The package that a source of BIG-bench tasks is read from."""
    return Package(
        file=f"bigbench-{source.version}.tar.gz",
        requirement=f"bigbench=={source.version}",
        sha256=source.sha256,
    )


def cached_extract(package: Package, cache: Path) -> Path:
    """The extract of the package in the cache; it is fetched and made first if it is not right.

    Raises
    ------
    LetheError
        If the package cannot be fetched, is damaged or holds no BIG-bench task.
    """
    target = cache / extract_name(package)
    return cached_contents(package, target, make=extract, is_whole=is_whole_zip)


def extract_name(package: Package) -> str:
    """The file name of the package's extract."""
    return package.file.removesuffix(".tar.gz") + ".zip"


def is_whole_zip(archive: Path) -> bool:
    """Whether every member of a zip has the checksum that the zip lists, and there is one."""
    try:
        with zipfile.ZipFile(archive) as members:
            return bool(members.namelist()) and members.testzip() is None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def _repack(package: Path, archive: Path) -> int:
    count = 0
    with tarfile.open(package, "r|gz") as tar, zipfile.ZipFile(archive, "w") as out:
        for member in tar:
            name = member.name.partition(FOLDER)[2]
            if member.isfile() and _holds_examples(name) and member.size < LARGEST_TASK:
                # A fixed date, so that the archive has the same bytes every time.
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                content = tar.extractfile(member).read()
                out.writestr(info, content, zipfile.ZIP_DEFLATED, LEVEL)
                count += 1
    return count


def _holds_examples(name: str) -> bool:
    return name.endswith("/task.json") or name.startswith("squad_shifts/") and ".json" in name


def read_bigbench(archive: Path, where: str, shots: int = 0) -> Iterator[Example]:
    """Reads the examples of one task, or the passages of one file of squad_shifts.

    Parameters
    ----------
    archive
        The zip that `extract` wrote.
    where
        Path of the task in BIG-bench, like `arithmetic/3_digit_addition`, or of a .json file.
    shots
        Number of solved examples before each prompt. They are the task's first examples, which
        are then left out.

    Raises
    ------
    LetheError
        If there is no such task, with those that have a similar name.
    """
    content = _load(archive, where)
    if "data" in content and "examples" not in content:
        return _passages(content)
    examples = _examples(content, where)
    solved = "".join(f"{e.prompt}\n{e.answer}\n\n" for e in islice(examples, shots))
    return (replace(e, prompt=f"{solved}{e.prompt}") for e in examples)


def read_bigbench_as_text(archive: Path, where: str, shots: int = 0) -> Iterator[Example]:
    """Like `read_bigbench`, with input and answer of a task joined to plain upstream text."""
    for example in read_bigbench(archive, where, shots):
        if example.text is not None:
            yield example
        else:
            # The input holds a news article or a dialogue, which the target continues.
            yield Example(text=f"{example.prompt}\n{example.answer}".strip())


def _load(archive: Path, where: str) -> dict[str, Any]:
    name = where if where.endswith(".json") else f"{where}/task.json"
    try:
        with zipfile.ZipFile(archive) as members:
            names = members.namelist()
            if name in names:
                return json.loads(members.read(name))
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise LetheError(
            f"{archive}: the BIG-bench extract is damaged ({error}); move it away, and the next "
            "run makes it again"
        )
    near = _similar_names(where, [member.removesuffix("/task.json") for member in names])
    hint = f"near: {near}" if near else f"python -m zipfile -l {archive} lists all"
    raise LetheError(f"BIG-bench has no task {where!r} with examples; {hint}")


def _similar_names(where: str, names: list[str]) -> list[str]:
    """Up to eight names: first those with a similar spelling, then those with its first part."""
    first_part = where.split("/")[0]
    similar = difflib.get_close_matches(where, names, n=8)
    similar += [name for name in names if first_part in name]
    return list(dict.fromkeys(similar))[:8]


def _passages(content: dict[str, Any]) -> Iterator[Example]:
    texts: set[str] = set()
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            text = paragraph["context"].strip()
            if text not in texts:
                texts.add(text)
                yield Example(text=text)


def _examples(content: dict[str, Any], where: str) -> Iterator[Example]:
    input_prefix = content.get("example_input_prefix", "\nQ: ")
    output_prefix = content.get("example_output_prefix", "\nA: ")
    choice_prefix = content.get("example_choice_prefix", "\n  choice: ")
    task_prefix = content.get("task_prefix", "").strip()
    for record in content.get("examples", []):
        answer = _answer(record, where)
        if record.get("input") is None:
            raise LetheError(f"BIG-bench task {where!r}: an example has no input")
        question = _text(record["input"], "input", where)
        if content.get("append_choices_to_input", True) and "target_scores" in record:
            # Sorted, because in many tasks the right answer comes first.
            for choice in sorted(record["target_scores"]):
                question += choice_prefix + choice
        prompt = f"{input_prefix}{question}{output_prefix}".strip()
        if task_prefix and prompt:
            prompt = f"{task_prefix}\n{prompt}"
        yield Example(prompt or task_prefix, answer)


def _answer(record: dict[str, Any], where: str) -> str:
    scores = record.get("target_scores")
    if scores:
        # The first by name among equally good answers, so that it is the same every time.
        return max(sorted(scores), key=lambda choice: scores[choice])
    target = record.get("target")
    if isinstance(target, list):
        # BIG-bench lists all accepted answers; the first is the one to learn.
        target = target[0] if target else ""
    if target is None:
        raise LetheError(f"BIG-bench task {where!r}: an example has neither target nor scores")
    return _text(target, "target", where)


def _text(value: Any, field: str, where: str) -> str:
    try:
        return value_as_text(value)
    except NotText as error:
        raise NotText(f"BIG-bench task {where!r}: field {field!r} {error}")
