"""Completion from the nearest training tasks (protocol 2.2, step 5)."""

import numpy as np

from lethe.completion.biases import fit_biases
from lethe.completion.completer import Completer

SIMILARITIES = ("msd", "pearson", "scaled")


class KNN(Completer):
    """Additive baseline plus the similarity-weighted residuals of the `k` most similar tasks.

    Similarities over the probes: `msd` = 1 / (1 + mean squared difference), the paper's, which
    is nearly 1 for every task if forgetting is small; `scaled` = exp(-msd / median msd);
    `pearson` = correlation, without the tasks of negative correlation.

    Parameters
    ----------
    ridge
        Shrinks the new row's offset, in observations.
    ridge_rows, ridge_columns, epochs
        Of the additive fit on the training rows (`lethe.completion.biases.fit_biases`).

    Attributes
    ----------
    biases_ : Biases
        The additive fit.
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
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity {similarity!r} is not msd, pearson or scaled")
        self.k = k
        self.similarity = similarity
        self.ridge = ridge
        self.ridge_rows = ridge_rows
        self.ridge_columns = ridge_columns
        self.epochs = epochs

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        self._values = np.where(observed, values, 0.0)
        self._observed = observed.astype(float)
        self.biases_ = fit_biases(
            values,
            observed,
            ridge_rows=self.ridge_rows,
            ridge_columns=self.ridge_columns,
            epochs=self.epochs,
        )
        self._residuals = np.where(observed, values - self.biases_.to_matrix(), 0.0)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        base = self.biases_.mean + self.biases_.columns
        observations = max(len(index) + self.ridge, 1e-12)
        base = base + (values - base[index]).sum(axis=1, keepdims=True) / observations
        similar = self._nearest(self._similarities(index, values))
        weight = similar @ self._observed
        sums = similar @ self._residuals
        return base + np.divide(sums, weight, out=np.zeros_like(sums), where=weight > 0)

    def _nearest(self, similar: np.ndarray) -> np.ndarray:
        """Similarities (R, M) of the k nearest rows, where positive; all others zero."""
        similar = np.maximum(similar, 0.0)
        tasks = similar.shape[1]
        if tasks <= self.k:
            return similar
        cut = np.partition(similar, tasks - self.k, axis=1)[:, [tasks - self.k]]
        above = similar > cut
        # Of equally similar tasks at the cut, the first in the order of the rows are used.
        tied = similar == cut
        remaining = self.k - above.sum(axis=1, keepdims=True)
        return np.where(above | (tied & (tied.cumsum(axis=1) <= remaining)), similar, 0.0)

    def _similarities(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Similarity (R, M) of each new row with each training row, over shared probes."""
        shared = self._observed[:, index]
        counts = np.maximum(shared.sum(axis=1), 1e-12)
        if self.similarity == "pearson":
            return _pearson(values, self._values[:, index], shared)
        # Squares are expanded, because all differences at once would not fit into memory.
        known = self._values[:, index]
        squares = np.square(values) @ shared.T - 2 * (values @ known.T)
        msd = np.maximum(squares + np.square(known).sum(axis=1), 0.0) / counts
        unknown = np.broadcast_to(shared.sum(axis=1) == 0, msd.shape)
        if self.similarity == "scaled":
            median = np.nanmedian(np.where(unknown, np.nan, msd), axis=1, keepdims=True)
            similarity = np.exp(-msd / np.where(median > 0, median, np.inf))
        else:
            similarity = 1 / (1 + msd)
        return np.where(unknown, 0.0, similarity)


def _pearson(new: np.ndarray, rows: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Correlations (R, M) over shared cells; 0 where a row has no spread there."""
    counts = np.maximum(shared.sum(axis=1), 1)
    sums = new @ shared.T
    row_sums = rows.sum(axis=1)
    covariance = new @ rows.T - sums * row_sums / counts
    spread_new = np.square(new) @ shared.T - np.square(sums) / counts
    spread_rows = np.square(rows).sum(axis=1) - np.square(row_sums) / counts
    scale = np.maximum(spread_new, 0) * np.maximum(spread_rows, 0)
    # Spread at the size of rounding errors would give arbitrary correlations; it counts as none.
    floor = 1e-18 * (np.square(new) @ shared.T) * np.square(rows).sum(axis=1)
    safe = np.sqrt(np.where(scale > floor, scale, np.inf))
    return covariance / safe
