"""The interface of every completion method, and the checks that come before each."""

from typing import Self

import numpy as np


class Completer:
    """Predicts a whole row of Z from a few probed entries of it.

    `fit` takes the rows of the training tasks, `predict` the probes of one new task. Subclasses
    implement `_fit` and `_predict`; what they are handed is float64, checked and in a fixed
    order, so that the order of probes can never matter.
    """

    def fit(self, train: np.ndarray) -> Self:
        """Learns from training rows (M, N) in nats; NaN cells are unknown and masked.

        Raises
        ------
        ValueError
            If `train` is not a matrix or has no known cell.
        """
        values = np.array(train, dtype=np.float64)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"train has shape {values.shape}; wanted (tasks, examples)")
        known = np.isfinite(values)
        if not known.any():
            raise ValueError("train has no known cell")
        self.examples = values.shape[1]
        self._fit(values, known)
        return self

    def predict(self, probe_index: np.ndarray, probe_values: np.ndarray) -> np.ndarray:
        """Completes a new row (N,) from its values at k probed columns; NaN probes are ignored.

        Raises
        ------
        ValueError
            If index and values differ in length, an index is out of range or stands twice.
        """
        index = np.asarray(probe_index, dtype=int).ravel()
        values = np.asarray(probe_values, dtype=np.float64).ravel()
        if len(index) != len(values):
            raise ValueError(f"{len(index)} probe indices and {len(values)} probe values")
        if len(index) and (index.min() < 0 or index.max() >= self.examples):
            raise ValueError(f"probe index out of range 0..{self.examples - 1}")
        if len(np.unique(index)) < len(index):
            raise ValueError("a probe index stands twice")
        order = np.argsort(index, kind="stable")
        index, values = index[order], values[order]
        seen = np.isfinite(values)
        return self._predict(index[seen], values[seen])

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        raise NotImplementedError

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        raise NotImplementedError
