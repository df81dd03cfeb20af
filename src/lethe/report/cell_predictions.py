"""The predicted forgetting of every cell of Z, for the report's comparison with the measured one.

The figure of prediction errors takes its numbers from completion.csv. The predictions here show the
reader where those errors are: each task is predicted from other tasks and a few of its own cells.
"""

import numpy as np

from lethe.completion import make

METHOD = "gaussian"
PROBES = 30
# Up to this number of tasks, each is predicted from all others; of more tasks, a tenth at a time.
MOST_SINGLE_TASKS = 30
_FOLDS = 10


def predict_cells(values: np.ndarray) -> np.ndarray:
    """Predicts every cell of Z from other tasks and a few probes of its own task.

    The tasks of one fold are predicted from the tasks of all other folds. Probes are the same
    random examples for all tasks that have the same measured cells.

    Parameters
    ----------
    values
        Z (M, N) in nats, NaN where a cell was not measured.

    Returns
    -------
    Predictions (M, N) in nats. NaN: the cell was a probe, its example has no measured cell in the
    other folds, or its task has no measured cell.
    """
    tasks = len(values)
    folds = np.arange(tasks) % (tasks if tasks <= MOST_SINGLE_TASKS else _FOLDS)
    predicted = np.full(values.shape, np.nan, dtype=np.float32)
    for fold in np.unique(folds):
        train = values[folds != fold].astype(np.float64)
        measured = np.isfinite(train)
        if not measured.any(axis=1).sum() > 1:
            continue
        completer = make(METHOD).fit(train)
        for row in np.flatnonzero(folds == fold):
            index = choose_random_probes(values[row])
            if len(index) == 0:
                continue
            predicted[row] = completer.predict(index, values[row, index].astype(np.float64))
            predicted[row, ~measured.any(axis=0)] = np.nan
            predicted[row, index] = np.nan
    return predicted


def choose_random_probes(row: np.ndarray) -> np.ndarray:
    """Positions of `PROBES` random measured cells of a row; of a short row, at most a third."""
    measured = np.flatnonzero(np.isfinite(row))
    count = min(PROBES, len(measured) // 3)
    return np.sort(np.random.default_rng(0).choice(measured, count, replace=False))
