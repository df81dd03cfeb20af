"""Predictions that a method has to beat."""

import numpy as np

from lethe.completion.completer import Completer


class Random(Completer):
    """Draws every entry from the known training entries; probes are ignored."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        rng = np.random.default_rng([self.seed, 11])
        self._prediction = rng.choice(values[observed], size=self.examples_)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.tile(self._prediction, (len(values), 1))


class Constant(Completer):
    """Predicts the mean of the probes for every example, or the training mean without probes.

    Attributes
    ----------
    mean_ : float
        Mean of the known training cells.
    """

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        self.mean_ = float(values[observed].mean())

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        means = values.mean(axis=1) if len(index) else np.full(len(values), self.mean_)
        return np.tile(means[:, None], (1, self.examples_))


class ColumnMean(Completer):
    """Predicts each example's mean over the training tasks.

    On a binary Z this is the base rate of each example.

    Attributes
    ----------
    means_ : ndarray of shape (N,)
        Predicted row.
    """

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        counts = observed.sum(axis=0)
        sums = np.where(observed, values, 0).sum(axis=0)
        # The mean of all cells is the best guess for a column that no training task knows.
        self.means_ = np.where(counts > 0, sums / np.maximum(counts, 1), values[observed].mean())

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.tile(self.means_, (len(values), 1))
