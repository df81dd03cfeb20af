"""Completion by the example means: shifted (additive), or shifted and stretched (affine)."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.biases import fit_biases
from lethe.completion.foldin import FoldIn, Prior, Solver, mean_row, offset_spread

RIDGES = (0.0, 0.3, 1.0, 3.0, 10.0, 30.0)
FACTORS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Additive(FoldIn):
    """Mean + task + example (paper, section 4; protocol 2.2, step 3).

    The only unknown of the new task is its offset: the mean residual of the probes, shrunk to
    zero by `ridge` observations.

    Parameters
    ----------
    ridge
        By default chosen by leave-one-task-out for each number of probes.
    ridge_rows, ridge_columns, epochs
        Of the additive fit on the training rows (`lethe.completion.biases.fit_biases`).
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
        self.ridge_rows = ridge_rows
        self.ridge_columns = ridge_columns
        self.epochs = epochs

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
        observations = _observations(values.shape[1], np.array(candidates))
        weights[..., -1] = residuals / observations[:, None]
        return weights

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        super()._fit(values, observed)
        biases = fit_biases(
            values,
            observed,
            ridge_rows=self.ridge_rows,
            ridge_columns=self.ridge_columns,
            epochs=self.epochs,
        )
        # Equals the mean row if all cells are known and no ridge is set.
        self._base = biases.mean + biases.columns

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        residuals = (values - self._base[index]).sum(axis=1)
        offsets = residuals / _observations(len(index), self.model_.choose(len(index)))
        return self._base + offsets[:, None]


def _observations(probes: int, ridge):
    # Without probes and ridge the offset is 0, that of the average task; this avoids 0 / 0.
    return np.maximum(probes + ridge, 1e-12)


class Affine(FoldIn):
    """Offset plus scale times the example means: a task forgets more, or less, of the same.

    Ridge regression of the probes on the example means. The prior of offset and scale is centred
    at 0 and 1, as wide as both spread over the training tasks.

    Parameters
    ----------
    noise
        Factor on the noise; by default chosen by leave-one-task-out for each number of probes.
    """

    default = 1.0

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def candidates(self) -> Sequence[float]:
        """Factors on the noise variance."""
        return FACTORS if self.noise is None else (self.noise,)

    def parts(self, total: np.ndarray) -> tuple[Prior, float]:
        """Prior of offset and scale, and the variance of training rows around their fit."""
        tasks = len(total) - 1
        count = total[-1, -1]
        scale_and_offset = np.vstack([mean_row(tasks), np.eye(tasks + 1)[-1]])
        inner = scale_and_offset @ total @ scale_and_offset.T
        # Least squares of every training row on the mean row and the ones.
        products = scale_and_offset @ total[:, :-1]
        coefficients = np.linalg.lstsq(inner, products, rcond=1e-10)[0]
        explained = np.einsum("ij,ij->j", coefficients, products)
        residual = np.maximum(np.diag(total)[:-1] - explained, 0).mean() / count
        spread = np.array([max(coefficients[0].std(), 1e-6), offset_spread(total)])
        prior = Prior(mean=scale_and_offset[0], basis=spread[:, None] * scale_and_offset)
        return prior, max(residual, 1e-12)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Posterior mean of offset and scale."""
        prior, noise = parts
        solver = Solver(prior, probed, noise=np.full(probed.shape[1], noise))
        return solver.weights(values, candidates)
