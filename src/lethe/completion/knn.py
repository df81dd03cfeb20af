"""Completion from the nearest training tasks (protocol 2.2, step 5)."""

import numpy as np

from lethe.completion.base import Completer
from lethe.completion.biases import biases


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
        Of the additive fit on the training rows (`lethe.completion.additive.biases`).
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
        self.values, self.known = values, known
        self.biases = biases(values, known, **self.fit_options)
        self.residuals = np.where(known, values - self.biases.fitted(), 0.0)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        base = self.biases.mean + self.biases.columns
        weights = max(len(index) + self.ridge, 1e-12)
        base = base + (values - base[index]).sum() / weights
        similar = self._similarities(index, values)
        nearest = np.argsort(-similar, kind="stable")[: self.k]
        nearest = nearest[similar[nearest] > 0]
        weight = similar[nearest] @ self.known[nearest]
        moved = similar[nearest] @ self.residuals[nearest]
        return base + np.divide(moved, weight, out=np.zeros_like(moved), where=weight > 0)

    def _similarities(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        shared = self.known[:, index]
        counts = shared.sum(axis=1)
        if self.similarity == "pearson":
            return np.array(
                [_pearson(self.values[i, index], values, shared[i]) for i in range(len(counts))]
            )
        squared = np.square(np.where(shared, self.values[:, index] - values, 0.0)).sum(axis=1)
        msd = np.where(counts > 0, squared / np.maximum(counts, 1), np.nan)
        if self.similarity == "scaled" and np.nanmedian(msd) > 0:
            return np.nan_to_num(np.exp(-msd / np.nanmedian(msd)))
        return np.nan_to_num(1 / (1 + msd))


def _pearson(row: np.ndarray, values: np.ndarray, shared: np.ndarray) -> float:
    if shared.sum() < 2:
        return 0.0
    a, b = row[shared] - row[shared].mean(), values[shared] - values[shared].mean()
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float(a @ b / scale) if scale > 0 else 0.0
