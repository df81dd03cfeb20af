"""Completion by the example means: shifted (additive), or shifted and stretched (affine)."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.biases import biases
from lethe.completion.foldin import FoldIn, Prior, Solver, mean_row, offset_spread

RIDGES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Additive(FoldIn):
    """Mean + task + example (paper, section 4; protocol 2.2, step 3).

    The new task's one unknown is its offset: mean residual of the probes, shrunk to zero by
    `ridge` observations, chosen by leave-one-task-out for each number of probes unless given.
    `ridge_rows` and `ridge_columns` are those of the fit on the training rows.
    """

    default = 0.0

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

    def candidates(self) -> Sequence[float]:
        """Ridges on the new row's offset, in observations."""
        return RIDGES if self.ridge is None else (self.ridge,)

    def parts(self, total: np.ndarray) -> np.ndarray:
        """The combination of training rows that is their mean."""
        return mean_row(len(total) - 1)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """The mean row and, on the ones, the shrunk mean residual."""
        residuals = (values - parts @ probed).sum(axis=1)
        weights = np.tile(parts, (len(candidates), len(values), 1))
        weights[..., -1] = residuals / _weight(values.shape[1], np.array(candidates))[:, None]
        return weights

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        super()._fit(values, known)
        fitted = biases(values, known, **self.fit_options)
        # The mean row when nothing is unknown and no ridge is set; else what the fit makes of it.
        self._base = fitted.mean + fitted.columns

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        residuals = (values - self._base[index]).sum(axis=1)
        offsets = residuals / _weight(len(index), self.model.choice(len(index)))
        return self._base + offsets[:, None]


def _weight(probes: int, ridge):
    # With no probe and no ridge there is nothing to go by: the average task.
    return np.maximum(probes + ridge, 1e-12)


class Affine(FoldIn):
    """Offset plus scale times the example means: a task forgets more, or less, of the same.

    Ridge regression of the probes on the example means, drawn towards offset 0 and scale 1 by
    the spread of both over the training tasks. One factor on the noise is chosen by
    leave-one-task-out for each number of probes unless given.
    """

    default = 1.0

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def candidates(self) -> Sequence[float]:
        """Factors on the noise variance."""
        return FACTORS if self.noise is None else (self.noise,)

    def parts(self, total: np.ndarray) -> tuple[Prior, float]:
        """Prior of offset and scale, and the variance that the two leave of training rows."""
        tasks, count = len(total) - 1, total[-1, -1]
        two = np.vstack([mean_row(tasks), np.eye(tasks + 1)[-1]])
        inner = two @ total @ two.T
        # Least squares of every training row on the mean row and the ones.
        fitted = np.linalg.lstsq(inner, two @ total[:, :-1], rcond=1e-10)[0]
        explained = np.einsum("ij,ij->j", fitted, two @ total[:, :-1])
        left = np.maximum(np.diag(total)[:-1] - explained, 0).mean() / count
        spread = np.array([max(fitted[0].std(), 1e-6), offset_spread(total)])
        return Prior(two[0], spread[:, None] * two), max(left, 1e-12)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Posterior mean of offset and scale."""
        prior, noise = parts
        solver = Solver(prior, probed, np.full(probed.shape[1], noise))
        return solver.weights(values, candidates)
