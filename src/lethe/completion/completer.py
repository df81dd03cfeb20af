"""The interface of every completion method, and the checks that come before each."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np


class Completer:
    """Predicts complete rows of Z from a few probed entries of each.

    `fit` takes the rows of the training tasks. `predict` takes the probes of a new task, or of
    several tasks that were probed at the same columns. Subclasses implement `_fit` and `_predict`.
    Their arguments are checked, float64, without NaN probes and sorted, so that the order of
    probes can never matter. A method whose class has `has_intervals` also implements `_intervals`.

    Attributes
    ----------
    examples_ : int
        N, the number of columns that the method was fitted on.
    """

    has_intervals = False

    def __repr__(self) -> str:
        parameters = []
        for name, value in self._parameters().items():
            parameters.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parameters)})"

    def _parameters(self) -> dict[str, Any]:
        """The arguments of the constructor; attributes that are learned end in an underscore."""
        parameters = {}
        for name, value in vars(self).items():
            if not name.startswith("_") and not name.endswith("_"):
                parameters[name] = value
        return parameters

    def fit(self, train: np.ndarray) -> Self:
        """Learns from training rows (M, N) in nats; NaN cells are ignored.

        Raises
        ------
        ValueError
            If `train` is not a matrix, has no known cell or an infinite one.
        """
        values = np.array(train, dtype=np.float64)
        if values.ndim != 2 or 0 in values.shape:
            raise ValueError(f"train has shape {values.shape}; expected (tasks, examples)")
        observed = ~np.isnan(values)
        if not observed.any():
            raise ValueError("train has no known cell")
        if np.isinf(values).any():
            raise ValueError(
                f"train has {np.isinf(values).sum()} infinite cells; use NaN for unknown cells"
            )
        self.examples_ = values.shape[1]
        self._fit(values, observed)
        return self

    def predict(self, probe_index: np.ndarray, probe_values: np.ndarray) -> np.ndarray:
        """Completes a new row (N,) from its values (k,) at k probed columns; NaN is no probe.

        Values (R, k), of R tasks probed at the same columns, give predictions (R, N).

        Raises
        ------
        ValueError
            If the method is not fitted, index and values differ in length, or an index is out of
            range or stands twice.
        """
        index, values = self.check_probes(probe_index, probe_values)
        rows = np.atleast_2d(values)
        predicted = np.empty((len(rows), self.examples_))
        for members, columns in group_by_measured_columns(rows):
            probed = rows[np.ix_(members, columns)]
            predicted[members] = self._predict(index[columns], probed)
        return predicted if values.ndim == 2 else predicted[0]

    def predict_interval(
        self, probe_index: np.ndarray, probe_values: np.ndarray, level: float = 0.9
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, in the shape of a prediction, of an interval for each new cell.

        An interval contains the cell with probability `level`.

        Raises
        ------
        ValueError
            As `predict`; if `level` is not between 0 and 1, or the method has no intervals.
        """
        return self.predict_intervals(probe_index, probe_values, [level])[0]

    def predict_intervals(
        self, probe_index: np.ndarray, probe_values: np.ndarray, levels: Sequence[float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ends as of `predict_interval` for each level, for little more than the time of one.

        Raises
        ------
        ValueError
            As `predict_interval`.
        """
        if not self.has_intervals:
            raise ValueError(f"{type(self).__name__} has no intervals; wrap it in Conformal")
        for level in levels:
            if not 0 < level < 1:
                raise ValueError(f"level {level} is not between 0 and 1")
        index, values = self.check_probes(probe_index, probe_values)
        rows = np.atleast_2d(values)
        middle = np.empty((len(rows), self.examples_))
        reaches = np.empty((len(levels), *middle.shape))
        for members, columns in group_by_measured_columns(rows):
            probed = rows[np.ix_(members, columns)]
            middle[members], reaches[:, members] = self._intervals(index[columns], probed, levels)
        if values.ndim == 1:
            middle = middle[0]
            reaches = reaches[:, 0]
        return [(middle - reach, middle + reach) for reach in reaches]

    def check_probes(self, probe_index, probe_values) -> tuple[np.ndarray, np.ndarray]:
        """Sorted index (k,) and values (k,) or (R, k)."""
        if not hasattr(self, "examples_"):
            raise ValueError(f"{type(self).__name__} is not fitted; call fit(train) first")
        index = np.asarray(probe_index, dtype=int).ravel()
        values = np.asarray(probe_values, dtype=np.float64)
        if values.ndim not in (1, 2) or len(index) != values.shape[-1]:
            raise ValueError(f"{len(index)} probe indices and probe values {values.shape}")
        if len(index) and (index.min() < 0 or index.max() >= self.examples_):
            raise ValueError(f"probe index out of range 0..{self.examples_ - 1}")
        if len(np.unique(index)) < len(index):
            raise ValueError("a probe index stands twice")
        order = np.argsort(index, kind="stable")
        return index[order], values[..., order]

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        raise NotImplementedError

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) from values (R, k) at columns `index` (k,)."""
        raise NotImplementedError

    def _intervals(
        self, index: np.ndarray, values: np.ndarray, levels: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Middle (R, N) and half-widths (L, R, N) from values (R, k) at columns `index` (k,)."""
        raise NotImplementedError


def group_by_measured_columns(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Groups rows whose NaN are in the same columns: (row numbers, columns with values)."""
    observed = np.isfinite(values)
    if observed.all():
        return [(np.arange(len(values)), np.arange(values.shape[1]))]
    patterns, group = np.unique(observed, axis=0, return_inverse=True)
    groups = []
    for number, pattern in enumerate(patterns):
        groups.append((np.flatnonzero(group.ravel() == number), np.flatnonzero(pattern)))
    return groups
