"""Choosing hyper-parameters by leaving one training task out at a time."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from lethe.completion.biases import fill

T = TypeVar("T")

# (train (M-1, n), left-out row (n,), probe index (k,), candidates) -> a prediction (n,) for each.
LeftOut = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[T]], list[np.ndarray]]


class Folds:
    """Training rows, each in turn played as the unseen task with random probes.

    Choosing looks at no more than `columns` columns, drawn once, which is plenty for a handful
    of candidates and keeps the cost the same at any N. Unknown cells are filled with the
    additive fit for training and left out of the error.
    """

    def __init__(
        self,
        values: np.ndarray,
        known: np.ndarray,
        columns: int = 2000,
        draws: int = 3,
        seed: int = 0,
    ):
        rng = np.random.default_rng([seed, 13])
        count = values.shape[1]
        taken = np.arange(count)
        if count > columns:
            taken = np.sort(rng.choice(count, columns, replace=False))
        self.known = known[:, taken]
        self.values = fill(values[:, taken], self.known)
        self.draws, self.seed = draws, seed

    def choose(self, probes: int, candidates: Sequence[T], left_out: LeftOut, default: T) -> T:
        """The candidate of least squared error on unprobed cells; `default` under three rows."""
        if len(self.values) < 3 or probes == 0:
            return default
        errors = np.zeros(len(candidates))
        rng = np.random.default_rng([self.seed, probes])
        for row in range(len(self.values)):
            train = np.delete(self.values, row, axis=0)
            for _ in range(self.draws):
                errors += self._errors(train, row, probes, candidates, left_out, rng)
        return candidates[int(np.argmin(errors))]

    def _errors(self, train, row, probes, candidates, left_out, rng) -> np.ndarray:
        cells = np.flatnonzero(self.known[row])
        if len(cells) < 2:
            return np.zeros(len(candidates))
        # One cell at least stays unprobed, else there is nothing to judge by.
        index = rng.permutation(cells)[: min(probes, len(cells) - 1)]
        hidden = np.setdiff1d(cells, index)
        truth = self.values[row]
        predictions = left_out(train, truth, np.sort(index), candidates)
        return np.array([np.square(p[hidden] - truth[hidden]).mean() for p in predictions])
