"""Scores of predicted rows against what was measured."""

import numpy as np
from scipy import stats

METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")


def metrics(
    truth: np.ndarray, predicted: np.ndarray, threshold: float, called_above: float | None = None
) -> np.ndarray:
    """Scores (R, len(METRICS)) of R predicted rows over the cells given, both (R, n), no NaN.

    RMSE and MAE in the units of Z (nats); Spearman; the share of the 1 and 10 percent most
    forgotten examples that are among the 1 and 10 percent predicted highest, where equal ones
    share the places that are left to them; F1 and AUC of 'forgetting above the threshold' (NaN
    where all or no examples are); predictions above `called_above`, by default the same
    threshold, are called forgotten.
    """
    error = predicted - truth
    positive = truth > threshold
    called = predicted > (threshold if called_above is None else called_above)
    ranks = stats.rankdata(predicted, axis=1)
    scores = (
        np.sqrt(np.square(error).mean(axis=1)),
        np.abs(error).mean(axis=1),
        _correlation(stats.rankdata(truth, axis=1), ranks),
        _overlap(truth, predicted, 0.01),
        _overlap(truth, predicted, 0.1),
        _f1(positive, called),
        _auc(positive, ranks),
    )
    return np.stack(scores, axis=1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    # A constant prediction orders nothing, which is no correlation, not an undefined one.
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def _overlap(truth: np.ndarray, predicted: np.ndarray, share: float) -> np.ndarray:
    """Share (R,) of the places at the top of the truth that are at the top of the prediction.

    Where values are equal at the cut, it is what breaking ties at random would give on average:
    a constant prediction scores chance, and the order of examples never matters. A truth with
    ties there, as of 0s and 1s, leaves less than 1 to be reached: (places left / tied) of them.
    """
    count = max(1, round(share * truth.shape[1]))
    return (_at_top(truth, count) * _at_top(predicted, count)).sum(axis=1) / count


def _at_top(values: np.ndarray, count: int) -> np.ndarray:
    """Chance (R, n) of each value to be among its row's `count` highest, ties broken at random."""
    cut = np.partition(values, -count, axis=1)[:, [-count]]
    above, tied = values > cut, values == cut
    left = count - above.sum(axis=1, keepdims=True)
    return above + tied * (left / tied.sum(axis=1, keepdims=True))


def _f1(positive: np.ndarray, called: np.ndarray) -> np.ndarray:
    hits, real = (positive & called).sum(axis=1), positive.sum(axis=1)
    return np.where(real > 0, 2 * hits / np.maximum(real + called.sum(axis=1), 1), np.nan)


def _auc(positive: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    count = positive.sum(axis=1)
    others = positive.shape[1] - count
    above = (ranks * positive).sum(axis=1) - count * (count + 1) / 2
    return np.where(count * others > 0, above / np.maximum(count * others, 1), np.nan)
