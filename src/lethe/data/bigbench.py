"""BIG-bench tasks out of the PyPI source package (Apache-2.0), without installing it."""

import difflib
import json
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from lethe.data.examples import Example
from lethe.errors import LetheError
from lethe.files import whole

FOLDER = "bigbench/benchmark_tasks/"
# A few tasks of hundreds of megabytes are left out of the extract, but not upstream text.
LARGEST_TASK = 40_000_000
# Of deflate; the usual level takes three times as long and saves a fifth.
LEVEL = 1


def extract(package: Path, archive: Path) -> int:
    """Repacks the files that carry examples into one zip with random access.

    Reading a member of a compressed tar means reading all before it, so a task would cost
    seconds each time; of a zip it costs milliseconds. Returns the number of files.
    """
    count = 0
    with whole(archive) as part:
        with tarfile.open(package, "r|gz") as tar, zipfile.ZipFile(part, "w") as out:
            for member in tar:
                name = member.name.partition(FOLDER)[2]
                if member.isfile() and _carries_examples(name) and member.size < LARGEST_TASK:
                    # A fixed date, so that the archive has the same bytes every time.
                    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                    content = tar.extractfile(member).read()
                    out.writestr(info, content, zipfile.ZIP_DEFLATED, LEVEL)
                    count += 1
        if not count:
            raise LetheError(f"{package}: holds no BIG-bench task under {FOLDER}")
    return count


def _carries_examples(name: str) -> bool:
    return name.endswith("/task.json") or name.startswith("squad_shifts/") and ".json" in name


def read(archive: Path, where: str, shots: int = 0) -> Iterator[Example]:
    """The examples of one task, or the passages of one file of squad_shifts.

    The first `shots` examples stand solved before the prompt of every other.

    Parameters
    ----------
    archive
        What `extract` wrote.
    where
        Path of the task in BIG-bench, like `arithmetic/3_digit_addition`, or of a .json file.

    Raises
    ------
    LetheError
        If there is no such task, with those that are closest.
    """
    content = _load(archive, where)
    if "data" in content and "examples" not in content:
        return _passages(content)
    examples = _examples(content, where)
    solved = "".join(f"{e.prompt}\n{e.answer}\n\n" for e in islice(examples, shots))
    return (replace(e, prompt=f"{solved}{e.prompt}") for e in examples)


def read_as_text(archive: Path, where: str, shots: int = 0) -> Iterator[Example]:
    """Like `read`, with input and answer of a task joined to plain upstream text."""
    for example in read(archive, where, shots):
        if example.text is not None:
            yield example
        else:
            # News articles and dialogues are in the input; their target continues them.
            yield Example(text=f"{example.prompt}\n{example.answer}".strip())


def _load(archive: Path, where: str) -> dict[str, Any]:
    name = where if where.endswith(".json") else f"{where}/task.json"
    with zipfile.ZipFile(archive) as members:
        if name not in members.namelist():
            names = [n.removesuffix("/task.json") for n in members.namelist()]
            near = _near(where, names)
            raise LetheError(f"BIG-bench has no task {where!r} with examples; near: {near}")
        return json.loads(members.read(name))


def _near(where: str, names: list[str]) -> list[str]:
    """Up to eight names: spelled like it, then those that hold its first part."""
    first = where.split("/")[0]
    alike = difflib.get_close_matches(where, names, n=8)
    return list(dict.fromkeys([*alike, *(name for name in names if first in name)]))[:8]


def _passages(content: dict[str, Any]) -> Iterator[Example]:
    seen = set()
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            if (text := paragraph["context"].strip()) not in seen:
                seen.add(text)
                yield Example(text=text)


def _examples(content: dict[str, Any], where: str) -> Iterator[Example]:
    before = content.get("example_input_prefix", "\nQ: ")
    after = content.get("example_output_prefix", "\nA: ")
    prefix = content.get("task_prefix", "").strip()
    for record in content.get("examples", []):
        answer = _answer(record, where)
        if (question := record.get("input")) is None:
            raise LetheError(f"BIG-bench task {where!r}: an example has no input")
        if content.get("append_choices_to_input", True) and "target_scores" in record:
            choices = content.get("example_choice_prefix", "\n  choice: ")
            # Sorted, because in many tasks the right answer stands first.
            question += "".join(choices + choice for choice in sorted(record["target_scores"]))
        parts = (prefix, f"{before}{question}{after}".strip())
        yield Example("\n".join(part for part in parts if part), answer)


def _answer(record: dict[str, Any], where: str) -> str:
    if scores := record.get("target_scores"):
        # Of several best answers the first by name, so that the choice is the same every time.
        return max(sorted(scores), key=lambda choice: scores[choice])
    target = record.get("target")
    if isinstance(target, list):
        target = target[0] if target else ""
    if target is None:
        raise LetheError(f"BIG-bench task {where!r}: an example has neither target nor scores")
    return str(target)
