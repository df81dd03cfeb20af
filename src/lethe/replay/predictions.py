"""Predicted rows that replay draws by, where every task is a test task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lethe.completion.evaluation import predict_rows
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix


def predict_without_own_row(
    matrix: Matrix,
    tasks: Mapping[str, Task],
    method: str,
    *,
    probes: int,
    seed: int,
    allowed: Sequence[bool] | np.ndarray,
    options: Mapping[str, dict] | None = None,
    choice: str = "random",
    domains: Sequence[str] | None = None,
    sibling: np.ndarray | None = None,
) -> Matrix:
    """Predicts every task from the rows of all others and a few probes of its own row.

    This is leave-one-task-out: the method is fitted, its settings are chosen and the probes are
    chosen without the task's row; only the probed cells of that row are read.

    Parameters
    ----------
    matrix
        Z with the rows of all tasks.
    tasks
        The task table by name. Its splits and groups play no part.
    method
        Name of a completion method.
    probes
        Number of examples that are measured on the new task.
    allowed
        Mask (N,) of the examples that may be probed.
    sibling
        Rows (M, N) of another model in Z's order, for the method `gaussian_sibling`. The task's
        row on that model is read, because it does not come from this model's fine-tune.

    Returns
    -------
    Predicted forgetting (tasks, N) in nats; a probed cell has its measured value.
    """
    predicted = []
    for name in tasks:
        table = {}
        for other, task in tasks.items():
            table[other] = replace(task, split="test" if other == name else "train")
        row = predict_rows(
            matrix,
            table,
            method=method,
            probes=probes,
            seed=seed,
            allowed=np.asarray(allowed),
            options=options,
            choice=choice,
            domains=domains,
            sibling=sibling,
        )
        predicted.append(row.values[0])
    return Matrix(np.array(predicted, dtype=np.float32), list(tasks), matrix.example_ids)
