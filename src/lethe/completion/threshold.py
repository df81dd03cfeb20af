"""Turns predicted probabilities into yes or no, at a threshold that makes F1 large."""

from collections.abc import Callable, Sequence

import numpy as np

from lethe.completion.completer import Completer
from lethe.completion.foldin import JUDGED_TASKS, MANY_TASKS, sample_columns


def tuned_threshold(make_method: Callable[[], Completer], train: np.ndarray, probes: int) -> float:
    """The prediction above which calling a cell 1 gives the best F1 on training tasks.

    A method that shrinks to the base rate seldom predicts more than one half where few cells are
    1, although its order may be right. Every training row (of 0s and 1s) is left out in turn and
    predicted from random probes, and the mean of the rows' F1 is maximised (`best_threshold`).

    Parameters
    ----------
    make_method
        Makes an unfitted method.
    train
        Training rows (M, N), NaN where unknown. A sample of the columns, and of the rows, is
        used if there are many.
    probes
        Number of probed examples per prediction.

    Returns
    -------
    The threshold; 0.5 if there are fewer than two rows, or no cell is 1.
    """
    rows = sample_columns(np.asarray(train, dtype=np.float64))
    if len(rows) < 2:
        return 0.5
    rng = np.random.default_rng([probes, 43])
    if len(rows) > MANY_TASKS:
        rows = rows[np.sort(rng.choice(len(rows), JUDGED_TASKS, replace=False))]
    truths = []
    predictions = []
    for row, truth in enumerate(rows):
        order = rng.permutation(np.flatnonzero(np.isfinite(truth)))
        # At least one cell stays unprobed, because probed cells cannot be judged.
        index, hidden = np.split(order, [min(probes, max(len(order) - 1, 0))])
        method = make_method().fit(np.delete(rows, row, axis=0))
        truths.append(truth[hidden] > 0.5)
        predictions.append(method.predict(index, truth[index])[hidden])
    return best_threshold(truths, predictions)


def best_threshold(truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> float:
    """The cut of predictions that maximises the mean F1 of tasks.

    It lies half-way between two predictions, so that rounding moves neither across it. It is 0.5
    if nothing is true. The mean over tasks is the F1 that `evaluate` reports. F1 of all cells
    together would be another aim: tasks that forget much dominate it, and its best cut calls too
    little forgotten on the others.

    Parameters
    ----------
    truths
        Booleans (n,) of each task. A task without any True has no F1 and is left out.
    predictions
        Predictions (n,) of each task.
    """
    positive_truths = []
    descending = []
    for truth, predicted in zip(truths, predictions, strict=True):
        if truth.any():
            order = np.argsort(-predicted, kind="stable")
            positive_truths.append(truth[order])
            descending.append(predicted[order])
    if not positive_truths:
        return 0.5
    # A cut just below each of these values; equal predictions fall on the same side of it.
    values = np.unique(np.concatenate(descending))[::-1]
    scores = np.zeros(len(values))
    for truth, predicted in zip(positive_truths, descending, strict=True):
        called = np.searchsorted(-predicted, -values, side="right")
        hits = np.append(0, np.cumsum(truth))[called]
        scores += 2 * hits / (called + truth.sum())
    return _below(values, int(np.argmax(scores)))


def expected_f1_thresholds(probabilities: np.ndarray) -> np.ndarray:
    """The cut (R, 1) of each row of probabilities (R, n) that maximises its expected F1.

    If the m largest probabilities are called 1, expected F1 is about 2 x their sum / (m + sum of
    all). No cell of the row needs to be known, and tasks that forget little get a lower cut than
    others (Lipton, Elkan and Narayanaswamy 2014, "Optimal thresholding of classifiers to maximize
    F1 measure", section 4: the best cut is half of the best F1). The probabilities must be
    calibrated.
    """
    cuts = []
    for row in probabilities:
        values, counts = np.unique(row, return_counts=True)
        values = values[::-1]
        counts = counts[::-1]
        scores = 2 * np.cumsum(values * counts) / (np.cumsum(counts) + row.sum())
        cuts.append(_below(values, int(np.argmax(scores))))
    return np.array(cuts)[:, None]


def _below(values: np.ndarray, number: int) -> float:
    """A cut half-way between a value and the next smaller one of descending values."""
    following = values[number + 1] if number + 1 < len(values) else values[number] - 1.0
    return float((values[number] + following) / 2)
