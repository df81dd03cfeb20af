"""Turns predicted probabilities into yes or no, at the threshold that training tasks support."""

from collections.abc import Callable

import numpy as np

from lethe.completion.completer import Completer
from lethe.completion.foldin import JUDGED_TASKS, MANY_TASKS, sample_columns


def tuned_threshold(make_method: Callable[[], Completer], train: np.ndarray, probes: int) -> float:
    """The prediction above which calling a cell 1 gives the best F1 on training tasks.

    A method that shrinks to the base rate seldom predicts more than one half where few cells are
    1, although its order may be right. Every training row (of 0s and 1s) is left out in turn and
    predicted from random probes; precision and recall are pooled over the cells of all rows.

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
    return best_threshold(np.concatenate(truths), np.concatenate(predictions))


def best_threshold(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The cut of predictions (n,) that maximises F1 against `truth` (n,) of booleans.

    It lies half-way between two predictions, so that rounding moves neither across it. It is 0.5
    if nothing is true.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-predicted, kind="stable")
    hits = np.cumsum(truth[order])
    values = predicted[order]
    scores = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    # Equal predictions fall on the same side of a cut, so a cut can only follow the last of them.
    last = np.append(values[1:] < values[:-1], True)
    cut = int(np.argmax(np.where(last, scores, -1.0)))
    following = values[cut + 1] if cut + 1 < len(values) else values[cut] - 1.0
    return float((values[cut] + following) / 2)
