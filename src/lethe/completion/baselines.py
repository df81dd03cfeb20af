"""Predictions that a method has to beat."""

import numpy as np

from lethe.completion.base import Completer


class Random(Completer):
    """Draws every entry from the known training entries; probes are ignored."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        rng = np.random.default_rng([self.seed, 11])
        self.prediction = rng.choice(values[known], size=self.examples)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.prediction.copy()


class ColumnMean(Completer):
    """Every example is forgotten as much as on average over the training tasks."""

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        counts = known.sum(axis=0)
        sums = np.where(known, values, 0).sum(axis=0)
        # A column that no training task knows has nothing better than the mean of all.
        self.means = np.where(counts > 0, sums / np.maximum(counts, 1), values[known].mean())

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.means.copy()
