"""Additive completion: mean + task + example (paper, section 4; protocol 2.2, step 3)."""

import numpy as np

from lethe.completion.base import Completer
from lethe.completion.biases import biases
from lethe.completion.tuning import Folds

RIDGES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)


class Additive(Completer):
    """The new task's one unknown is its offset: mean residual of the probes, shrunk to zero.

    `ridge`, in observations, is chosen by leave-one-task-out for each number of probes unless
    given. `ridge_rows` and `ridge_columns` are those of the fit on the training rows.
    """

    def __init__(
        self,
        ridge: float | None = None,
        ridge_rows: float = 0.0,
        ridge_columns: float = 0.0,
        epochs: int = 20,
    ):
        self.ridge = ridge
        self.fit_options = {
            "ridge_rows": ridge_rows,
            "ridge_columns": ridge_columns,
            "epochs": epochs,
        }

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.biases = biases(values, known, **self.fit_options)
        self._folds = Folds(values, known)
        self._chosen: dict[int, float] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        base = self.biases.mean + self.biases.columns
        return base + self.offset(index, values)

    def offset(self, index: np.ndarray, values: np.ndarray) -> float:
        """The new row's bias in nats."""
        residuals = values - self.biases.mean - self.biases.columns[index]
        ridge = self.ridge if self.ridge is not None else self._tuned(len(index))
        # With no probe and no ridge there is nothing to go by: the average task.
        return float(residuals.sum() / max(len(index) + ridge, 1e-12))

    def _tuned(self, probes: int) -> float:
        if probes not in self._chosen:
            self._chosen[probes] = self._folds.choose(probes, RIDGES, _left_out, default=0.0)
        return self._chosen[probes]


def _left_out(train, row, probes, ridges):
    """Predictions of a left-out row for every ridge, the training rows' column means as base."""
    means = train.mean(axis=0)
    sums = (row[probes] - means[probes]).sum()
    return [means + sums / (len(probes) + ridge) for ridge in ridges]
