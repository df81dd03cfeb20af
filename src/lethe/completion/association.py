"""Prediction of forgetting from an association of tasks with examples, instead of from probes.

An association is a number for each task and example that is known without measuring the task's
forgetting: a similarity of texts, of representations or of gradients. All associations but
`weight_difference` are known before the fine-tune.
"""

from typing import Self

import numpy as np


class Association:
    """Least squares line from association to forgetting, fitted on the training tasks only.

    Alone, forgetting = a + b * association. With the column mean, forgetting = mean of the
    training tasks on the example + b * (association - its mean over the training tasks there),
    so the association adds to how forgettable an example is. Both are reported, because leaving
    the base rate out makes a baseline look weak, and adding it hides how weak a baseline is.

    Use the column mean only for associations that do not depend on Z. An association that was
    trained on Z predicts a training task from the others. It is low on an example where that task
    is high, while the column mean contains that task, so b would be too low.

    Attributes
    ----------
    z_mean_, s_mean_ : ndarray
        Means of forgetting and of the association: of all cells, or (N,) of each column.
    slope_ : float
        b, in nats per unit of the association.
    """

    def __init__(self, column_mean: bool = False):
        self.column_mean = column_mean

    def __repr__(self) -> str:
        return f"Association(column_mean={self.column_mean!r})"

    def fit(self, train: np.ndarray, associations: np.ndarray) -> Self:
        """Learns a and b from training rows (M, N) and their associations (M, N).

        Raises
        ------
        ValueError
            If the shapes differ or no cell of both is known.
        """
        z = np.asarray(train, dtype=np.float64)
        s = np.asarray(associations, dtype=np.float64)
        if z.shape != s.shape:
            raise ValueError(f"Z has shape {z.shape}, associations have {s.shape}")
        observed = np.isfinite(z) & np.isfinite(s)
        if not observed.any():
            raise ValueError("no cell has both forgetting and association")
        axis = 0 if self.column_mean else None
        self.z_mean_ = _mean(z, observed, axis)
        self.s_mean_ = _mean(s, observed, axis)
        dz = np.where(observed, z - self.z_mean_, 0)
        ds = np.where(observed, s - self.s_mean_, 0)
        spread = np.square(ds).sum()
        self.slope_ = float((dz * ds).sum() / spread) if spread > 0 else 0.0
        return self

    def predict(self, associations: np.ndarray) -> np.ndarray:
        """Forgetting (R, N) from associations (R, N); unknown ones count as their mean."""
        difference = np.asarray(associations, dtype=np.float64) - self.s_mean_
        return self.z_mean_ + self.slope_ * np.where(np.isfinite(difference), difference, 0.0)


def _mean(values: np.ndarray, observed: np.ndarray, axis: int | None) -> np.ndarray:
    """Mean of known cells along an axis; the mean of all cells where none is known."""
    filled = np.where(observed, values, 0.0)
    overall = filled.sum() / observed.sum()
    counts = observed.sum(axis=axis)
    return np.where(counts > 0, filled.sum(axis=axis) / np.maximum(counts, 1), overall)
