"""Prediction of forgetting from an association of tasks with examples, instead of from probes.

An association is a number for each task and example, known without measuring what the task makes
forget: a similarity of texts, of representations or of gradients. All but `weight_difference` are
known before the task is fine-tuned on.
"""

from typing import Self

import numpy as np


class Association:
    """Least squares line from association to forgetting, fitted on the training tasks only.

    Alone, forgetting = a + b * association. With the column mean, forgetting = mean of the
    training tasks on the example + b * (association - its mean over the training tasks there):
    what the association knows beyond how forgettable an example is. Both are reported, since a
    base rate that is left out makes a baseline look weak, and one that is let in hides it.

    The column mean is for associations that know nothing of Z. One that was itself trained on Z
    predicts a training task from the others, so that it is low on an example where that task is
    high, while the mean that its row of Z is compared with holds that task: b comes out too low.
    """

    def __init__(self, column_mean: bool = False):
        self.column_mean = column_mean

    def fit(self, train: np.ndarray, associations: np.ndarray) -> Self:
        """Learns a and b from training rows (M, N) and their associations (M, N).

        Raises
        ------
        ValueError
            If the shapes differ or no cell of both is known.
        """
        z, s = np.asarray(train, dtype=np.float64), np.asarray(associations, dtype=np.float64)
        if z.shape != s.shape:
            raise ValueError(f"Z has shape {z.shape}, associations have {s.shape}")
        known = np.isfinite(z) & np.isfinite(s)
        if not known.any():
            raise ValueError("no cell has both forgetting and association")
        axis = 0 if self.column_mean else None
        self.z_mean, self.s_mean = _mean(z, known, axis), _mean(s, known, axis)
        dz, ds = np.where(known, z - self.z_mean, 0), np.where(known, s - self.s_mean, 0)
        spread = np.square(ds).sum()
        self.slope = float((dz * ds).sum() / spread) if spread > 0 else 0.0
        return self

    def predict(self, associations: np.ndarray) -> np.ndarray:
        """Forgetting (R, N) from associations (R, N); where unknown, as at their mean."""
        moved = np.asarray(associations, dtype=np.float64) - self.s_mean
        return self.z_mean + self.slope * np.where(np.isfinite(moved), moved, 0.0)


def _mean(values: np.ndarray, known: np.ndarray, axis: int | None) -> np.ndarray:
    """Mean of known cells along an axis; that of all cells where none is known."""
    filled = np.where(known, values, 0.0)
    whole = filled.sum() / known.sum()
    counts = known.sum(axis=axis)
    return np.where(counts > 0, filled.sum(axis=axis) / np.maximum(counts, 1), whole)
