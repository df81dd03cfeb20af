"""Reads an experiment and its task table, and lists every problem in one message."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lethe.config import Experiment
from lethe.config.checks import check_settings, model_recipe
from lethe.config.messages import explain, shorten
from lethe.config.model_settings import Recipe
from lethe.config.task_table import (
    Task,
    distinguishes_case,
    names_equal_but_case,
    read_task_table,
)
from lethe.config.yaml_file import YamlFile
from lethe.errors import ExperimentError


@dataclass(frozen=True)
class LoadedExperiment:
    """A checked experiment: its settings, and its tasks by name in the table's order."""

    settings: Experiment
    tasks: dict[str, Task]
    left_out: dict[str, Task] = field(default_factory=dict)
    """Tasks of the table that `leave_out` names; no job, table or figure has them."""
    own_matrices: dict[str, str] = field(default_factory=dict)
    """File of each matrix that you measured elsewhere, by its name."""

    def names(self, *splits: str) -> list[str]:
        """Names of the tasks of these splits, or of all tasks, in the table's order."""
        return [name for name, task in self.tasks.items() if not splits or task.split in splits]

    def recipe(self, model: str) -> Recipe:
        """The experiment's recipe with the changes of one model."""
        return model_recipe(self.settings, model)


def load_experiment(
    config: dict[str, Any], folder: Path = Path(), files: Sequence[Path] = ()
) -> LoadedExperiment:
    """Checks a complete experiment.

    Parameters
    ----------
    config
        Values of the experiment's YAML file.
    folder
        Paths in the experiment are relative to it.
    files
        The YAML files that `config` was read from. They give the lines of problems. YAML itself
        keeps the last of two equal keys, so without them a model that stands twice would silently
        lose its first entry.

    Raises
    ------
    ExperimentError
        With every problem: key, value seen, and which values are allowed.
    """
    yaml_files = _parse(files)
    settings, problems = _validate(config)
    for file in yaml_files:
        for problem in [*file.repeated_keys(), *file.ambiguous_numbers()]:
            problems.append(f"{file.path}, {problem}")
    tasks: dict[str, Task] = {}
    table = config.get("tasks") if isinstance(config, dict) else None
    is_location = not any(problem.startswith("tasks:") for problem in problems)
    if isinstance(table, str) and is_location:
        tasks, table_problems = read_task_table(folder / table, sources=bool(config.get("models")))
        problems += table_problems
        if not distinguishes_case(folder / table):
            problems += [f"{folder / table}: {problem}" for problem in names_equal_but_case(tasks)]
    own_matrices: dict[str, str] = {}
    left_out: dict[str, Task] = {}
    if settings is not None and tasks:
        left_out, leave_out_problems = _left_out(settings, tasks)
        problems += leave_out_problems
        tasks = {name: task for name, task in tasks.items() if name not in left_out}
    if settings is not None:
        own_matrices, setting_problems = check_settings(settings, tasks, folder)
        problems += setting_problems
    if problems:
        located = [with_line(problem, yaml_files) for problem in problems]
        raise ExperimentError(_label(config, files), located)
    return LoadedExperiment(
        settings=settings, tasks=tasks, left_out=left_out, own_matrices=own_matrices
    )


def _left_out(settings: Experiment, tasks: dict[str, Task]) -> tuple[dict[str, Task], list[str]]:
    """The tasks that `leave_out` names, and its problems."""
    if settings.leave_out and not settings.models:
        return {}, ["leave_out: needs models; take the task's row out of your own matrix instead"]
    left_out = {}
    problems = []
    for name in settings.leave_out:
        if name in tasks:
            left_out[name] = tasks[name]
        else:
            problems.append(f"leave_out: no task {name!r} in the task table; seen: {list(tasks)}")
    if len(left_out) == len(tasks):
        return {}, ["leave_out: names every task of the table; leave at least one in"]
    return left_out, problems


def _parse(files: Sequence[Path]) -> list[YamlFile]:
    """Parses YAML files; raises ExperimentError for those that cannot be checked key by key."""
    parsed = []
    for path in map(Path, files):
        # Snakemake reads JSON as well, whose tabs YAML refuses.
        if path.suffix != ".json":
            parsed.append(YamlFile.parse(path))
    for file in parsed:
        file.check_aliases()
    return parsed


def with_line(problem: str, files: list[YamlFile]) -> str:
    """The problem with the file and line of the key that it begins with, if a file has it."""
    key = problem.partition(":")[0]
    # A later file replaces keys of an earlier one.
    for file in reversed(files):
        line = file.line_of(key)
        if line is not None:
            return f"{file.path}, line {line}: {problem}"
    return problem


def _label(config: Any, files: Sequence[Path]) -> str:
    name = config.get("experiment") if isinstance(config, dict) else None
    if name:
        return f"experiment {shorten(name)}"
    return str(files[0]) if files else "experiment without a name"


def _validate(config: Any) -> tuple[Experiment | None, list[str]]:
    try:
        return Experiment.model_validate(config), []
    except ValidationError as error:
        return None, [explain(problem) for problem in error.errors()]
