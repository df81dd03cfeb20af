"""Values that strategies of replay choose examples by, read from the files that a rule names."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lethe.config.replay_settings import ReplayRun
from lethe.matrix import forgetting_matrix, rows


@dataclass(frozen=True)
class ReplayInputs:
    """Values that strategies choose by; see `lethe.replay.runs.fine_tune_with_replay`."""

    forgetting: Mapping[str, float] | None = None
    training_rows: Mapping[str, np.ndarray] | None = None
    gradient_products: Mapping[str, float] | None = None
    completion_options: Mapping[str, dict] | None = None


def read_scores(path: str | None, run: ReplayRun, task: str) -> dict[str, float] | None:
    """Forgetting by example id that a strategy draws by: measured for the oracle, or predicted."""
    if not path:
        return None
    if not run.reads_row:
        return forgetting_matrix.read_matrix_row(path, task)
    row = rows.read_row(path)
    return dict(zip(row.example_ids, row.forgetting.tolist(), strict=True))


def read_training_rows(path: str | None, tasks: list[str]) -> dict[str, np.ndarray] | None:
    """Forgetting by these tasks, by example id."""
    if not path:
        return None
    matrix = forgetting_matrix.read_matrix(path)
    columns = matrix.values[matrix.rows(tasks)].T
    return dict(zip(matrix.example_ids, columns, strict=True))


def read_products(path: str | None, task: str) -> dict[str, float] | None:
    """Inner products of the task's gradient with those of the examples, by example id."""
    return forgetting_matrix.read_matrix_row(path, task) if path else None
