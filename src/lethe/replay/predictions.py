"""Predicted rows that replay draws by.

There is one file per task, so that a new test task adds its own and changes no other.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lethe.completion import make
from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import choose_probes
from lethe.config.replay_settings import WITH_SIBLING, WITHOUT_PROBES
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix, read_matrix
from lethe.matrix.rows import read_row

_log = logging.getLogger(__name__)


def read_measured_rows(
    training_rows: Path, training_tasks: Sequence[str], row: Path, task: str
) -> Matrix:
    """Reads the rows that a prediction rests on, and that of the predicted task as the last.

    Parameters
    ----------
    training_rows
        A Z with at least the rows of `training_tasks`.
    row
        The row of `task`.

    Raises
    ------
    LetheError
        If the row is of other examples than the training rows.
    """
    known = read_matrix(training_rows)
    own = read_row(row)
    if own.example_ids != known.example_ids:
        raise LetheError(
            f"{row}: is of other upstream examples than {training_rows}; move it away and run again"
        )
    values = np.vstack([known.values[known.rows(list(training_tasks))], own.forgetting])
    return Matrix(values.astype(np.float32), [*training_tasks, task], known.example_ids)


def predict_row(
    measured: Matrix,
    task: str,
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
    """Predicts the forgetting of all examples by a task, from a few cells of its row.

    The method is fitted, its settings are chosen and the probes are chosen on the other rows.
    Those are known completely, held-out examples included. Of the task's own row, only the probed
    cells are read, and none by the methods `WITHOUT_PROBES`.

    Parameters
    ----------
    measured
        Rows (M, N) of the training tasks and of the task.
    method
        Name of a completion method. `gaussian_sibling` is `gaussian` with the rows of a sibling
        (`lethe.completion.sibling`), and the same as `gaussian` without them.
    probes
        Number of examples that are measured on the task. If fewer can be probed, a warning says
        so, and all of them are.
    allowed
        Mask (N,) of the examples that may be probed. If held-out examples are not, their forgetting
        by this task stays unseen.
    options
        Settings of the methods, by name.
    choice
        How probes are chosen (`lethe.completion.probes`), with the `domains` (N,) of the
        examples.
    sibling
        Rows (M, N) of another model in the order of `measured`. The task's row on that model is
        read, because it does not come from this model's fine-tune.

    Returns
    -------
    Predicted forgetting (1, N) in nats; a probed cell has its measured value. An example without
    any measured cell in the training rows, such as one that the base model answers wrong, stays
    NaN: it is never replayed.

    Raises
    ------
    LetheError
        If the task has no cell that can be probed.
    """
    [row] = measured.rows([task])
    others = np.arange(len(measured.tasks)) != row
    train, truth = measured.values[others], measured.values[row]
    unmeasured = ~np.isfinite(train).any(axis=0)
    if method in WITHOUT_PROBES:
        index = np.array([], dtype=int)
    else:
        can_be_probed = np.asarray(allowed) & np.isfinite(truth) & ~unmeasured
        count = _count_probes(probes, can_be_probed, task=task)
        index = choose_probes(
            train, count, choice, seed=seed, domains=domains, allowed=can_be_probed
        )
    if method == WITH_SIBLING and sibling is not None:
        with_sibling = Gaussian().fit(train, other=sibling[others])
        predicted = with_sibling.predict(index, truth[index], other=sibling[row])
    else:
        name = "gaussian" if method == WITH_SIBLING else method
        predicted = make(name, dict(options or {})).fit(train).predict(index, truth[index])
    predicted[unmeasured] = np.nan
    predicted[index] = truth[index]
    return Matrix(predicted[None].astype(np.float32), [task], measured.example_ids)


def _count_probes(wanted: int, can_be_probed: np.ndarray, task: str) -> int:
    """As many probes as are wanted, or as there are."""
    usable = int(can_be_probed.sum())
    if not usable:
        raise LetheError(
            f"replay: no example can be probed on task {task!r}: none that may be replayed is "
            "measured on it and on a training task; measure more upstream examples"
        )
    if usable < wanted:
        _log.warning(
            "replay.probes: %d are wanted, but only %d examples can be probed on task %s; the "
            "prediction reads these",
            wanted,
            usable,
            task,
        )
    return min(wanted, usable)


def read_predictions(files: Sequence[Path]) -> Matrix:
    """Reads the predictions of some tasks as the rows of one matrix, in the order of the files."""
    predicted = [read_matrix(file) for file in files]
    return Matrix(
        np.vstack([one.values for one in predicted]),
        [task for one in predicted for task in one.tasks],
        predicted[0].example_ids,
    )
