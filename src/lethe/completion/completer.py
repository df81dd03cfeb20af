"""The interface of every completion method, and the checks that come before each."""

from typing import Self

import numpy as np


class Completer:
    """Predicts whole rows of Z from a few probed entries of each.

    `fit` takes the rows of the training tasks, `predict` the probes of a new task, or of several
    that were probed at the same columns. Subclasses implement `_fit` and `_predict`; what they
    are handed is float64, checked, without NaN probes and in a fixed order, so that the order of
    probes can never matter. A method whose class has `has_intervals` also implements `_interval`.
    """

    has_intervals = False

    def fit(self, train: np.ndarray) -> Self:
        """Learns from training rows (M, N) in nats; NaN cells are unknown and masked.

        Raises
        ------
        ValueError
            If `train` is not a matrix, has no known cell or an infinite one.
        """
        values = np.array(train, dtype=np.float64)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"train has shape {values.shape}; wanted (tasks, examples)")
        known = ~np.isnan(values)
        if not known.any():
            raise ValueError("train has no known cell")
        if np.isinf(values).any():
            raise ValueError(f"train has {np.isinf(values).sum()} infinite cells; NaN is unknown")
        self.examples = values.shape[1]
        self._fit(values, known)
        return self

    def predict(self, probe_index: np.ndarray, probe_values: np.ndarray) -> np.ndarray:
        """Completes a new row (N,) from its values (k,) at k probed columns; NaN is no probe.

        Values (R, k), of R tasks probed at the same columns, give predictions (R, N).

        Raises
        ------
        ValueError
            If index and values differ in length, an index is out of range or stands twice.
        """
        index, values = self._probes(probe_index, probe_values)
        rows = np.empty((len(np.atleast_2d(values)), self.examples))
        for chosen, seen in _alike(np.atleast_2d(values)):
            rows[chosen] = self._predict(index[seen], np.atleast_2d(values)[np.ix_(chosen, seen)])
        return rows if values.ndim == 2 else rows[0]

    def predict_interval(
        self, probe_index: np.ndarray, probe_values: np.ndarray, level: float = 0.9
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends, shaped as `predict`'s answer, that hold a new cell with `level`.

        Raises
        ------
        ValueError
            As `predict`; if `level` is not between 0 and 1, or the method has no intervals.
        """
        if not self.has_intervals:
            raise ValueError(f"{type(self).__name__} has no intervals; wrap it in Conformal")
        if not 0 < level < 1:
            raise ValueError(f"level {level} is not between 0 and 1")
        index, values = self._probes(probe_index, probe_values)
        ends = np.empty((2, len(np.atleast_2d(values)), self.examples))
        for chosen, seen in _alike(np.atleast_2d(values)):
            probed = np.atleast_2d(values)[np.ix_(chosen, seen)]
            ends[:, chosen] = self._interval(index[seen], probed, level)
        low, high = ends if values.ndim == 2 else ends[:, 0]
        return low, high

    def _probes(self, probe_index, probe_values) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(probe_index, dtype=int).ravel()
        values = np.asarray(probe_values, dtype=np.float64)
        if values.ndim not in (1, 2) or len(index) != values.shape[-1]:
            raise ValueError(f"{len(index)} probe indices and probe values {values.shape}")
        if len(index) and (index.min() < 0 or index.max() >= self.examples):
            raise ValueError(f"probe index out of range 0..{self.examples - 1}")
        if len(np.unique(index)) < len(index):
            raise ValueError("a probe index stands twice")
        order = np.argsort(index, kind="stable")
        return index[order], values[..., order]

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        raise NotImplementedError

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) from values (R, k) at columns `index` (k,)."""
        raise NotImplementedError

    def _interval(self, index, values, level) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


def _alike(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups of rows whose NaN stand at the same places: (row numbers, columns seen)."""
    seen = np.isfinite(values)
    if seen.all():
        return [(np.arange(len(values)), np.arange(values.shape[1]))]
    patterns, group = np.unique(seen, axis=0, return_inverse=True)
    return [
        (np.flatnonzero(group.ravel() == i), np.flatnonzero(pattern))
        for i, pattern in enumerate(patterns)
    ]
