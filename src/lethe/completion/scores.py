"""Scores of predicted rows against measured ones."""

import numpy as np
from scipy import stats

METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")
# Shares of the most forgotten examples that metrics compare.
TOP_SHARES = (0.01, 0.1)


class Truth:
    """Measured rows (R, n) without NaN, with everything about them that scores need.

    Ranks and the most forgotten examples are computed once and serve the predictions of all
    methods.

    Parameters
    ----------
    values
        Measured rows (R, n) in the units of Z.
    threshold
        Examples above it count as forgotten.
    """

    def __init__(self, values: np.ndarray, threshold: float):
        self.values = values
        self.threshold = threshold
        self.positive = values > threshold
        self.centred_ranks = _centre(stats.rankdata(values, axis=1))
        self.at_top = {share: _chance_at_top(values, share) for share in TOP_SHARES}

    def score(
        self, predicted: np.ndarray, called_above: float | np.ndarray | None = None
    ) -> np.ndarray:
        """Scores (R, len(METRICS)) of predicted rows (R, n) without NaN; see `score_rows`."""
        error = predicted - self.values
        called = predicted > (self.threshold if called_above is None else called_above)
        ranks = stats.rankdata(predicted, axis=1)
        scores = {
            "rmse": np.sqrt(np.square(error).mean(axis=1)),
            "mae": np.abs(error).mean(axis=1),
            "spearman": _correlation(self.centred_ranks, _centre(ranks)),
            "top_1_percent": self._overlap(predicted, 0.01),
            "top_10_percent": self._overlap(predicted, 0.1),
            "f1": _f1(self.positive, called),
            "auc": _auc(self.positive, ranks),
        }
        return np.stack([scores[metric] for metric in METRICS], axis=1)

    def _overlap(self, predicted: np.ndarray, share: float) -> np.ndarray:
        """Share (R,) of the top of the truth that is at the top of the prediction.

        Ties at the cut-off count fractionally, by the average over random orders: a constant
        prediction scores chance, and the order of examples never matters. A truth with such ties
        (0s and 1s, say) has a best possible score below 1.
        """
        both = self.at_top[share] * _chance_at_top(predicted, share)
        return both.sum(axis=1) / _top_count(predicted.shape[1], share)


def score_rows(
    truth: np.ndarray,
    predicted: np.ndarray,
    threshold: float,
    called_above: float | np.ndarray | None = None,
) -> np.ndarray:
    """Scores (R, len(METRICS)) of R predicted rows; both arguments (R, n) without NaN.

    - RMSE and MAE in the units of Z (nats); Spearman.
    - The share of the 1 and 10 percent most forgotten examples that are among the 1 and 10
      percent predicted highest. Ties at the cut-off count fractionally.
    - F1 and AUC of 'forgetting above the threshold' (NaN where all or no examples are above).
      Predictions above `called_above`, by default the same threshold, are called forgotten. It is
      one number for all rows, or (R, 1) with one per row.
    """
    return Truth(truth, threshold).score(predicted, called_above)


def _centre(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=1, keepdims=True)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlations (R,) of centred rows (R, n)."""
    scale = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    # A constant prediction orders nothing, so its correlation counts as 0, not as undefined.
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def _top_count(examples: int, share: float) -> int:
    return max(1, round(share * examples))


def _chance_at_top(values: np.ndarray, share: float) -> np.ndarray:
    """Chance (R, n) of each value to be in the top share of its row, ties broken at random."""
    count = _top_count(values.shape[1], share)
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
