"""Predictions that a method has to beat."""

import numpy as np

from lethe.completion.completer import Completer


class Random(Completer):
    """Draws every entry from the known training entries; probes are ignored."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        rng = np.random.default_rng([self.seed, 11])
        self.prediction = rng.choice(values[known], size=self.examples)

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.tile(self.prediction, (len(values), 1))


class Constant(Completer):
    """Every example is forgotten as much as the mean probe; without probes, the training mean."""

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.mean = float(values[known].mean())

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        means = values.mean(axis=1) if len(index) else np.full(len(values), self.mean)
        return np.tile(means[:, None], (1, self.examples))


class ColumnMean(Completer):
    """Every example is forgotten as much as on average over the training tasks.

    On a binary Z this is the base rate of each example.
    """

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        counts = known.sum(axis=0)
        sums = np.where(known, values, 0).sum(axis=0)
        # A column that no training task knows has nothing better than the mean of all.
        self.means = np.where(counts > 0, sums / np.maximum(counts, 1), values[known].mean())

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.tile(self.means, (len(values), 1))
