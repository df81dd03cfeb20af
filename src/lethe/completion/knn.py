"""Completion from the nearest training tasks (protocol 2.2, step 5)."""

import numpy as np

from lethe.completion.biases import biases
from lethe.completion.completer import Completer


class KNN(Completer):
    """Additive baseline plus the similarity-weighted residuals of the `k` most similar tasks.

    Similarities over the probes: `msd` = 1 / (1 + mean squared difference), which is the
    paper's and for small forgetting nearly 1 for every task; `scaled` = exp(-msd / median msd);
    `pearson` = correlation, tasks of negative correlation left out.

    Parameters
    ----------
    ridge
        Shrinks the new row's offset, in observations.
    ridge_rows, ridge_columns, epochs
        Of the additive fit on the training rows (`lethe.completion.biases.biases`).
    """

    def __init__(
        self,
        k: int = 40,
        similarity: str = "msd",
        ridge: float = 0.0,
        ridge_rows: float = 0.0,
        ridge_columns: float = 0.0,
        epochs: int = 20,
    ):
        if similarity not in ("msd", "pearson", "scaled"):
            raise ValueError(f"similarity {similarity!r} is not msd, pearson or scaled")
        self.k, self.similarity, self.ridge = k, similarity, ridge
        self.fit_options = {
            "ridge_rows": ridge_rows,
            "ridge_columns": ridge_columns,
            "epochs": epochs,
        }

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.values, self.known = np.where(known, values, 0.0), known.astype(float)
        self.biases = biases(values, known, **self.fit_options)
        self.residuals = np.where(known, values - self.biases.fitted(), 0.0)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        base = self.biases.mean + self.biases.columns
        weight = max(len(index) + self.ridge, 1e-12)
        base = base + (values - base[index]).sum(axis=1, keepdims=True) / weight
        similar = self._nearest(self._similarities(index, values))
        weight, moved = similar @ self.known, similar @ self.residuals
        return base + np.divide(moved, weight, out=np.zeros_like(moved), where=weight > 0)

    def _nearest(self, similar: np.ndarray) -> np.ndarray:
        """Similarities (R, M) of the k nearest rows, where positive; all others zero."""
        similar = np.maximum(similar, 0.0)
        farther = np.argsort(-similar, axis=1, kind="stable")[:, self.k :]
        np.put_along_axis(similar, farther, 0.0, axis=1)
        return similar

    def _similarities(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Similarity (R, M) of each new row with each training row, over the probes both know."""
        shared = self.known[:, index]
        counts = np.maximum(shared.sum(axis=1), 1e-12)
        differences = values[:, None, :] - self.values[:, index]
        if self.similarity == "pearson":
            return _pearson(values, self.values[:, index], shared)
        msd = (np.square(differences) * shared).sum(axis=2) / counts
        unknown = np.broadcast_to(shared.sum(axis=1) == 0, msd.shape)
        if self.similarity == "scaled":
            typical = np.nanmedian(np.where(unknown, np.nan, msd), axis=1, keepdims=True)
            close = np.exp(-msd / np.where(typical > 0, typical, np.inf))
        else:
            close = 1 / (1 + msd)
        return np.where(unknown, 0.0, close)


def _pearson(new: np.ndarray, rows: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Correlations (R, M) over shared cells; 0 where a row has no spread there."""
    counts = np.maximum(shared.sum(axis=1), 1)
    sums, products = new @ shared.T, new @ rows.T
    row_sums = rows.sum(axis=1)
    covariance = products - sums * row_sums / counts
    spread_new = np.square(new) @ shared.T - np.square(sums) / counts
    spread_rows = np.square(rows).sum(axis=1) - np.square(row_sums) / counts
    scale = np.maximum(spread_new, 0) * np.maximum(spread_rows, 0)
    # Two probes and rounding make any correlation: what varies by rounding alone does not vary.
    floor = 1e-18 * (np.square(new) @ shared.T) * np.square(rows).sum(axis=1)
    safe = np.sqrt(np.where(scale > floor, scale, np.inf))
    return covariance / safe
