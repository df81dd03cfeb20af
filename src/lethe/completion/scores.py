"""Scores of predicted rows against measured ones."""

import numpy as np
from scipy import stats

METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")


def score_rows(
    truth: np.ndarray, predicted: np.ndarray, threshold: float, called_above: float | None = None
) -> np.ndarray:
    """Scores (R, len(METRICS)) of R predicted rows; both arguments (R, n) without NaN.

    - RMSE and MAE in the units of Z (nats); Spearman.
    - The share of the 1 and 10 percent most forgotten examples that are among the 1 and 10
      percent predicted highest. Ties at the cut-off count fractionally.
    - F1 and AUC of 'forgetting above the threshold' (NaN where all or no examples are above).
      Predictions above `called_above`, by default the same threshold, are called forgotten.
    """
    error = predicted - truth
    positive = truth > threshold
    called = predicted > (threshold if called_above is None else called_above)
    ranks = stats.rankdata(predicted, axis=1)
    scores = {
        "rmse": np.sqrt(np.square(error).mean(axis=1)),
        "mae": np.abs(error).mean(axis=1),
        "spearman": _correlation(stats.rankdata(truth, axis=1), ranks),
        "top_1_percent": _overlap(truth, predicted, 0.01),
        "top_10_percent": _overlap(truth, predicted, 0.1),
        "f1": _f1(positive, called),
        "auc": _auc(positive, ranks),
    }
    return np.stack([scores[metric] for metric in METRICS], axis=1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a = a - a.mean(axis=1, keepdims=True)
    b = b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    # A constant prediction orders nothing, so its correlation counts as 0, not as undefined.
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def _overlap(truth: np.ndarray, predicted: np.ndarray, share: float) -> np.ndarray:
    """Share (R,) of the top of the truth that is at the top of the prediction.

    Ties at the cut-off count fractionally, by the average over random orders: a constant
    prediction scores chance, and the order of examples never matters. A truth with such ties (0s
    and 1s, say) has a best possible score below 1.
    """
    count = max(1, round(share * truth.shape[1]))
    both = _chance_at_top(truth, count) * _chance_at_top(predicted, count)
    return both.sum(axis=1) / count


def _chance_at_top(values: np.ndarray, count: int) -> np.ndarray:
    """Chance (R, n) of each value to be among its row's `count` highest, ties broken at random."""
    cut = np.partition(values, -count, axis=1)[:, [-count]]
    above = values > cut
    tied = values == cut
    remaining = count - above.sum(axis=1, keepdims=True)
    return above + tied * (remaining / tied.sum(axis=1, keepdims=True))


def _f1(positive: np.ndarray, called: np.ndarray) -> np.ndarray:
    hits = (positive & called).sum(axis=1)
    real = positive.sum(axis=1)
    return np.where(real > 0, 2 * hits / np.maximum(real + called.sum(axis=1), 1), np.nan)


def _auc(positive: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    count = positive.sum(axis=1)
    others = positive.shape[1] - count
    above = (ranks * positive).sum(axis=1) - count * (count + 1) / 2
    return np.where(count * others > 0, above / np.maximum(count * others, 1), np.nan)
