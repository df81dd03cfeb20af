"""Gathers row files into Z, and refuses files that are not the rows they are named after."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.config.task_table import Task
from lethe.errors import RowError, RowsError
from lethe.matrix.forgetting_matrix import Matrix, kind_problems, machine_of, stack_rows
from lethe.matrix.rows import Row, read_row, read_rows, summarise_row

# Parts of `about.data` and the files, under results/<experiment>/tasks/<task>, they are hashes of.
DATA_FILES = {"train": "train.parquet", "evaluation": "eval.parquet"}

_log = logging.getLogger("lethe.matrix")


@dataclass(frozen=True)
class Gathered:
    """Z, and the rows that it was gathered from by task."""

    matrix: Matrix
    rows: dict[str, Row]

    def versions(self) -> list[str]:
        """Versions of lethe that the rows were measured with, sorted."""
        return sorted({lethe_version(row) for row in self.rows.values()})


def with_identity(row: Row, model: str, task: str) -> Row:
    """The row with the names of its model and task inside, as a gather compares them."""
    return replace(row, about=row.about | {"model": model, "task": task})


def lethe_version(row: Row) -> str:
    """The version of lethe that measured the row."""
    return str((row.about.get("versions") or {}).get("lethe", "unknown"))


def gather_row_files(
    files: Mapping[str, Path],
    model: str,
    mixed_machines: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Gathered:
    """Reads the rows of a model's tasks and stacks them into Z.

    Every row must hold the names of its model and task, and the hash of the examples that it was
    fine-tuned on. A row that was measured before rows held names is accepted if its hash equals
    that of the task's files, results/<experiment>/tasks/<task>. Without these files it is
    accepted with a warning in the log.

    Parameters
    ----------
    files
        The row file of each task.
    model
        Name of the model.
    mixed_machines, settings
        As in `lethe.matrix.forgetting_matrix.kind_problems`.

    Raises
    ------
    RowError
        Naming, in one message, every row that is missing, broken, without any measured value,
        of another model, task or data, a copy of another row, or measured with other settings.
    """
    rows = {}
    problems = []
    for task, path in files.items():
        try:
            row = read_row(path)
        except RowError as error:
            problems.append(str(error))
            continue
        problem = _identity_problem(row, path, model=model, task=task) or _value_problem(row, path)
        if problem:
            problems.append(problem)
        else:
            rows[task] = row
    problems += _copies(files, rows)
    hint = ""
    if rows:
        named = {task: (files[task], row) for task, row in rows.items()}
        differences = kind_problems(named, mixed_machines, settings)
        problems += differences
        if differences:
            hint = (
                "; if only torch, transformers or the device differ, allow_mixed_machines: true "
                "in the experiment accepts them"
            )
    if problems:
        raise RowsError(model, problems, files=f"its {len(files)} rows", hint=hint)
    gathered = Gathered(matrix=stack_rows(rows), rows=rows)
    versions = gathered.versions()
    if len(versions) > 1:
        _log.warning(
            "%s: rows were measured with several versions of lethe (%s); compare them with care",
            model,
            ", ".join(versions),
        )
    return gathered


def read_replay_runs(files: Sequence[Path], mixed_machines: bool = False) -> list[Row]:
    """Reads the runs with replay of one model, in the order of the files.

    Every run must hold the strategy, task and seed that its file is named after:
    replay/<strategy>/<task>-seed<seed>.parquet. A file of several runs is named after the variant
    that they hold.

    Parameters
    ----------
    mixed_machines
        Whether the runs may come from other versions of torch or transformers, or another device,
        than the first.

    Raises
    ------
    RowError
        Naming, in one message, every run that is missing, broken, without any measured value, or
        of another strategy, task or seed; also every run of another base model, scoring,
        upstream, machine or task than the runs before it.
    """
    runs: list[Row] = []
    first_of_task: dict[str, Row] = {}
    problems = []
    for path in files:
        try:
            rows_of_file = read_rows(path)
        except RowError as error:
            problems.append(str(error))
            continue
        for row in rows_of_file:
            problem = _run_name_problem(row, path) or _value_problem(row, path)
            if runs and not problem:
                same_task = first_of_task.get(row.about["task"])
                problem = _foreign_run_problem(row, path, first=runs[0], same_task=same_task)
                if not problem and not mixed_machines:
                    problem = _other_machine_problem(row, path, first=runs[0])
            if problem:
                problems.append(problem)
            else:
                runs.append(row)
                first_of_task.setdefault(row.about["task"], row)
    if problems:
        raise RowsError("replay", problems, files=f"{len(files)} runs", outcome="compared")
    return runs


def _foreign_run_problem(row: Row, path: Path, *, first: Row, same_task: Row | None) -> str | None:
    """The reason why a run cannot be compared with those before it, if there is one.

    Settings but the recipe say which base model, scoring and upstream examples were used. Runs of
    one task also share its examples.
    """
    for key in sorted((row.settings.keys() | first.settings.keys()) - {"recipe"}):
        if row.settings.get(key) != first.settings.get(key):
            return (
                f"{path}: differs from the first run in `{key}`; was the file copied from another "
                "model or experiment?"
            )
    if same_task is not None and same_task.about.get("data") != row.about.get("data"):
        return f"{path}: was trained or evaluated on other examples than other runs of its task"
    return None


def _other_machine_problem(row: Row, path: Path, *, first: Row) -> str | None:
    """The part of the machine in which a run differs from the first, if there is one."""
    expected = machine_of(first)
    for key, value in machine_of(row).items():
        if value != expected[key]:
            return (
                f"{path}: {key} is {value!r}, but {expected[key]!r} in the first run; losses of "
                "other machines differ slightly; allow_mixed_machines: true compares them anyway"
            )
    return None


def _run_name_problem(row: Row, path: Path) -> str | None:
    about = row.about
    if not {"strategy", "task", "seed"} <= about.keys():
        return f"{path}: is not a run with replay, because it names no strategy, task and seed"
    job = about.get("variant", about["strategy"])
    name = f"{job}/{about['task']}-seed{about['seed']}"
    if name == f"{path.parent.name}/{path.stem}":
        return None
    return f"{path}: is the run {name}; was the file renamed or copied?"


def summarise_rows(gathered: Gathered, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """The lines of rows.csv, in the order of Z.

    If the rows come from several versions of lethe, each line names its own.
    """
    several = len(gathered.versions()) > 1
    lines = []
    for name, row in gathered.rows.items():
        line = summarise_row(row, tasks[name])
        if several:
            line["lethe_version"] = lethe_version(row)
        lines.append(line)
    return lines


def _identity_problem(row: Row, path: Path, model: str, task: str) -> str | None:
    about = row.about
    for name, expected in (("model", model), ("task", task)):
        if name in about and about[name] != expected:
            return (
                f"{path}: was measured for {name} {about[name]!r}, expected {expected!r}; was the "
                "file renamed or copied?"
            )
    measured_on = about.get("data") or {}
    unproven = "task" not in about
    for part, name in DATA_FILES.items():
        data_file = path.parent.parent.parent / "tasks" / task / name
        if part not in measured_on or not data_file.is_file():
            continue
        if measured_on[part] != examples_digest(data_file):
            return (
                f"{path}: was measured on other {part} examples than those in {data_file}; was "
                "the file renamed or copied?"
            )
        unproven = False
    if unproven:
        _log.warning(
            "%s: does not say which task it was measured for, and there are no files of its "
            "examples to compare it with; it is gathered under the name of its file",
            path,
        )
    return None


def _value_problem(row: Row, path: Path) -> str | None:
    if np.isfinite(row.forgetting).any():
        return None
    return (
        f"{path}: no example has a value, all {len(row.example_ids)} are NaN; look into its log, "
        "or leave the task out of the task table"
    )


def _copies(files: Mapping[str, Path], rows: Mapping[str, Row]) -> list[str]:
    """A problem per row that repeats every measured value of another row."""
    problems = []
    tasks_by_content: dict[tuple[bytes, bytes, str], str] = {}
    for task, row in rows.items():
        about = {key: value for key, value in row.about.items() if key not in ("model", "task")}
        content = (
            row.loss_before.tobytes(),
            row.loss_after.tobytes(),
            json.dumps(about, sort_keys=True),
        )
        first = tasks_by_content.setdefault(content, task)
        if first != task:
            problems.append(
                f"{files[task]}: repeats {files[first]} in every value and in its timings, so one "
                "is a copy of the other"
            )
    return problems


def examples_digest(path: Path) -> str:
    """The hash of a task's examples, as rows hold it in `about.data`.

    Raises
    ------
    RowError
        If the file is not a table of examples.
    """
    try:
        hashes = pq.read_table(path, columns=["hash"])["hash"].to_pylist()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise RowError(f"{path}: not readable as examples ({error}); move it away and run again")
    return hashlib.sha256(json.dumps([hashes], sort_keys=True, default=str).encode()).hexdigest()
