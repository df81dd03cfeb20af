"""Predicted rows that replay draws by, where every task is a test task."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lethe.completion.evaluation import predict_rows
from lethe.matrix.forgetting_matrix import Matrix


def predict_without_own_row(
    matrix: Matrix,
    tasks: Iterable[str],
    method: str,
    *,
    probes: int,
    seed: int,
    allowed: Sequence[bool] | np.ndarray,
    options: Mapping[str, dict] | None = None,
    choice: str = "random",
    domains: Sequence[str] | None = None,
) -> Matrix:
    """Predicts every task from the rows of all others and a few probes of its own row.

    This is leave-one-task-out: the method is fitted, its settings are chosen and the probes are
    chosen without the task's row; only the probed cells of that row are read.

    Parameters
    ----------
    matrix
        Z with the rows of all tasks.
    tasks
        Names of all tasks. The splits of the task table play no part.
    method
        Name of a completion method.
    probes
        Number of examples that are measured on the new task.
    allowed
        Mask (N,) of the examples that may be probed.

    Returns
    -------
    Predicted forgetting (tasks, N) in nats; a probed cell has its measured value.
    """
    names = list(tasks)
    predicted = []
    for name in names:
        # One group, because a group of the task table plays no part either.
        table = {other: ("all", "test" if other == name else "train") for other in names}
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
        )
        predicted.append(row.values[0])
    return Matrix(np.array(predicted, dtype=np.float32), names, matrix.example_ids)
