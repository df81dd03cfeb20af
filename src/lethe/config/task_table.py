"""The task table: which tasks there are, where from, and what each is for."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.settings import Name

TASK_COLUMNS = ("name", "group", "source", "split")
SPLITS = ("train", "test", "ood")
NAME = re.compile(TypeAdapter(Name).json_schema()["pattern"])


@dataclass(frozen=True)
class Task:
    """One line of the task table; `source` is `<source key>:<where>`."""

    name: str
    group: str
    source: str
    split: str


def read_tasks(path: Path, sources: bool = True) -> tuple[dict[str, Task], list[str]]:
    """Reads the task table; returns the good lines and what is wrong with the others.

    The column `source` is wanted if examples are to be read from there: a matrix needs none.
    """
    wanted = [column for column in TASK_COLUMNS if sources or column != "source"]
    if not path.is_file():
        return {}, [f"tasks: no such file: {path}"]
    try:
        # utf-8-sig: spreadsheets write a mark first, which is no part of a column's name.
        with path.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            columns, found = list(reader.fieldnames or []), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{path}: not readable as CSV ({error}); save it as CSV in UTF-8"]
    if missing := [column for column in wanted if column not in columns]:
        return {}, [f"{path}: lacks the column(s) {missing}; columns seen: {columns}"]
    return _check_lines(path, found)


def _check_lines(path: Path, lines: list[dict[str, str]]) -> tuple[dict[str, Task], list[str]]:
    tasks: dict[str, Task] = {}
    problems = []
    for number, line in enumerate(lines, start=2):
        task = Task(*((line.get(column) or "").strip() for column in TASK_COLUMNS))
        where = f"{path}, line {number}"
        if not NAME.match(task.name):
            problems.append(f"{where}: name {task.name!r} may only hold letters, digits, _ . -")
        elif task.name in tasks:
            problems.append(f"{where}: task {task.name!r} stands twice in the table")
        if task.split not in SPLITS:
            allowed = ", ".join(SPLITS)
            problems.append(f"{where}: split must be one of {allowed} (value seen: {task.split!r})")
        if not task.group:
            problems.append(f"{where}: task {task.name!r} has no group")
        tasks[task.name] = task
    if not tasks:
        problems.append(f"{path}: holds no task")
    return tasks, problems
