"""From predicted probabilities to a yes or no: the threshold that training tasks ask for."""

from collections.abc import Callable

import numpy as np

from lethe.completion.completer import Completer
from lethe.completion.foldin import sample


def tuned_threshold(make: Callable[[], Completer], train: np.ndarray, probes: int) -> float:
    """The prediction above which calling a cell 1 gives the best F1 on training tasks.

    A method that shrinks to the base rate seldom says more than one half where few cells are 1;
    its order may be right all the same. Every training row (of 0s and 1s) is left out in turn and
    predicted from random probes; precision and recall are pooled over the cells of all rows.

    Parameters
    ----------
    make
        Makes an unfitted method.
    train
        Training rows (M, N), NaN where unknown; of wide ones some columns are looked at.
    probes
        How many probed examples the predictions rest on.

    Returns
    -------
    The threshold; 0.5 where there are fewer than two rows, or no cell is 1.
    """
    rows = sample(np.asarray(train, dtype=np.float64))
    if len(rows) < 2:
        return 0.5
    rng = np.random.default_rng([probes, 43])
    truths, predictions = [], []
    for left, truth in enumerate(rows):
        order = rng.permutation(np.flatnonzero(np.isfinite(truth)))
        # One cell at least stays unprobed, else there is nothing to judge by.
        index, hidden = np.split(order, [min(probes, max(len(order) - 1, 0))])
        method = make().fit(np.delete(rows, left, axis=0))
        truths.append(truth[hidden] > 0.5)
        predictions.append(method.predict(index, truth[index])[hidden])
    return best_threshold(np.concatenate(truths), np.concatenate(predictions))


def best_threshold(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Where to cut predictions (n,) so that F1 against `truth` (n,) of booleans is greatest.

    Half-way between two predictions, so that rounding moves neither; 0.5 if nothing is true.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-predicted, kind="stable")
    hits, values = np.cumsum(truth[order]), predicted[order]
    scores = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    # Equal predictions are called alike: only the last of them is a place to cut.
    last = np.append(values[1:] < values[:-1], True)
    cut = int(np.argmax(np.where(last, scores, -1.0)))
    following = values[cut + 1] if cut + 1 < len(values) else values[cut] - 1.0
    return float((values[cut] + following) / 2)
