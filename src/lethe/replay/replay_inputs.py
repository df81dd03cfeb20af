"""The values that strategies of replay choose examples by, and the files they are read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.config.replay_settings import ReplayRun
from lethe.matrix import forgetting_matrix, rows


@dataclass(frozen=True)
class ReplayInputs:
    """Values that strategies choose by. A strategy says which of them it needs.

    Attributes
    ----------
    forgetting
        Predicted or measured forgetting of the task by example_id, nats; for strategies that draw
        by it.
    training_rows
        Forgetting (M,) by the tasks that a prediction rests on, by example_id, nats; never the
        task's own. For the strategies `coverage`, `online` and `closed_loop`.
    gradient_products
        Inner products of the task's gradient with those of the examples, by example_id. For the
        strategy `gradient`.
    gradient_profiles
        Inner products (M,) of all tasks' gradients with that of an example, by example_id. For the
        strategy `gradient_matching`.
    completion_options
        Settings of the method that `online` and `closed_loop` predict with, by its name.
    """

    forgetting: Mapping[str, float] | None = None
    training_rows: Mapping[str, np.ndarray] | None = None
    gradient_products: Mapping[str, float] | None = None
    gradient_profiles: Mapping[str, np.ndarray] | None = None
    completion_options: Mapping[str, dict] | None = None


def read_replay(
    strategy: str, parameters: Mapping[str, Any], files: Mapping[str, str], task: str
) -> tuple[ReplayRun, ReplayInputs]:
    """The settings of a replay run, and the values that its strategy chooses by.

    Parameters
    ----------
    strategy
        Name of the run.
    parameters
        The settings that the rule records (`lethe.workflow.RuleParameters.replay`).
    files
        The rule's inputs `scores`, `training_rows` and `gradients`; empty where the strategy needs
        none.
    task
        The task that is fine-tuned on.
    """
    settings = dict(parameters)
    training_tasks = settings.pop("training_tasks", [])
    completion_options = settings.pop("completion", {})
    run = ReplayRun.from_parameters(strategy, settings)
    inputs = ReplayInputs(
        forgetting=_read_scores(files["scores"], run, task),
        training_rows=read_training_rows(files["training_rows"], training_tasks),
        gradient_products=_read_products(files["gradients"], task),
        gradient_profiles=_read_profiles(files["gradients"]),
        completion_options=completion_options,
    )
    return run, inputs


def _read_scores(path: str | None, run: ReplayRun, task: str) -> dict[str, float] | None:
    """Forgetting by example id that a strategy draws by: measured for the oracle, or predicted."""
    if not path:
        return None
    if not run.reads_row:
        return forgetting_matrix.read_matrix_row(path, task)
    row = rows.read_row(path)
    return dict(zip(row.example_ids, row.forgetting.tolist(), strict=True))


def read_training_rows(path: str | None, tasks: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Forgetting by these tasks, by example id; None without a file."""
    if not path:
        return None
    matrix = forgetting_matrix.read_matrix(path)
    columns = matrix.values[matrix.rows(tasks)].T
    return dict(zip(matrix.example_ids, columns, strict=True))


def _read_profiles(path: str | None) -> dict[str, np.ndarray] | None:
    """Inner products (M,) of all tasks' gradients with that of an example, by example id."""
    if not path:
        return None
    matrix = forgetting_matrix.read_matrix(path)
    return dict(zip(matrix.example_ids, matrix.values.T, strict=True))


def _read_products(path: str | None, task: str) -> dict[str, float] | None:
    """Inner products of the task's gradient with those of the examples, by example id."""
    return forgetting_matrix.read_matrix_row(path, task) if path else None
