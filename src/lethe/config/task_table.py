"""The task table: which tasks there are, where their examples come from, and their splits."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.csv_lines import CsvError, CsvLine, header_problem, shape_problem, split_csv
from lethe.config.settings import Name

TASK_COLUMNS = ("name", "group", "source", "split")
SPLITS = ("train", "test", "ood")
NAME = re.compile(TypeAdapter(Name).json_schema()["pattern"])
# Z has one column per task, and these columns of its own.
COLUMNS_OF_Z = ("example_id",)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One line of the task table.

    `source` is written `<source key>:<where>`; it is empty where a matrix was measured elsewhere.
    """

    name: str
    group: str
    split: str
    source: str = ""


def read_task_table(path: Path, sources: bool = True) -> tuple[dict[str, Task], list[str]]:
    """Reads the task table.

    Parameters
    ----------
    sources
        Whether the column `source` is required. A matrix that you bring needs no examples.

    Returns
    -------
    The tasks by name, in the table's order, and the problems of the table, one text per problem.
    """
    if not path.is_file():
        return {}, [f"tasks: no such file: {path}"]
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which is no part of a column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(split_csv(stream))
    except (OSError, UnicodeDecodeError, CsvError) as error:
        return {}, [f"{path}: not readable as CSV ({error}); save it as CSV in UTF-8"]
    columns = lines[0].cells if lines else []
    required = [column for column in TASK_COLUMNS if sources or column != "source"]
    missing = [column for column in required if column not in columns]
    if missing:
        return {}, [f"{path}: lacks the column(s) {missing}; columns seen: {columns}"]
    if problem := header_problem(columns):
        return {}, [f"{path}: {problem}"]
    return _check_lines(path, columns, lines[1:])


def _check_lines(
    path: Path, columns: list[str], lines: list[CsvLine]
) -> tuple[dict[str, Task], list[str]]:
    tasks: dict[str, Task] = {}
    problems = []
    for line in lines:
        if problem := shape_problem(line, columns):
            problems.append(f"{path}, {problem}")
        cells = dict(zip(columns, line.cells, strict=False))
        task = Task(
            name=cells.get("name", "").strip(),
            group=cells.get("group", "").strip(),
            split=cells.get("split", "").strip(),
            source=cells.get("source", "").strip(),
        )
        for problem in _task_problems(task):
            problems.append(f"{path}, line {line.number}: {problem}")
        if task.name in tasks:
            problems.append(f"{path}, line {line.number}: task {task.name!r} stands twice")
        tasks[task.name] = task
    if not tasks:
        problems.append(f"{path}: holds no task")
    return tasks, problems


def _task_problems(task: Task) -> list[str]:
    problems = []
    if not NAME.fullmatch(task.name):
        problems.append(f"name {task.name!r} may only hold letters, digits, _ . -")
    if task.name in COLUMNS_OF_Z:
        problems.append(
            f"name {task.name!r} is the name of another column of Z; choose another name"
        )
    if task.split not in SPLITS:
        allowed = ", ".join(SPLITS)
        problems.append(f"split must be one of {allowed} (value seen: {task.split!r})")
    if not task.group:
        problems.append(f"task {task.name!r} has no group")
    return problems


def tasks_from_pairs(pairs: Mapping[str, Sequence[str]]) -> dict[str, Task]:
    """Makes tasks from the parameter of a rule, which holds `[group, split]` per task name.

    Rules pass plain JSON values, so that Snakemake can compare them between runs. The source is
    left empty because only the rules that read examples need it.
    """
    tasks = {}
    for name, (group, split) in pairs.items():
        tasks[name] = Task(name=name, group=group, split=split)
    return tasks


def names_equal_but_case(names: Iterable[str]) -> list[str]:
    """Describes each pair of names that differ by upper and lower case only."""
    problems = []
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            problems.append(
                f"the tasks {other!r} and {name!r} differ by upper and lower case only, and this "
                "file system would store both in one file; rename one"
            )
    return problems


def distinguishes_case(path: Path) -> bool:
    """Whether the file system of an existing file tells upper from lower case in names."""
    other = path.with_name(path.name.swapcase())
    if other.name == path.name:
        return True
    try:
        return not other.samefile(path)
    except OSError:
        return True
