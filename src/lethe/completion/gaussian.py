"""Gaussian completion: the new row conditional on all training rows, with noise per column."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.column_noise import ColumnNoise, estimate_column_noise
from lethe.completion.foldin import (
    FoldIn,
    Prior,
    Solver,
    centring,
    mean_row,
    offset_spread,
    scale_spread,
)
from lethe.completion.gaussian_spread import GaussianSpread

NOISES = tuple(np.round(np.geomspace(0.1, 30, 13), 4).tolist())


class Gaussian(FoldIn):
    """The new row is a Gaussian with the training rows' mean and covariance, plus noise.

    Covariance over examples: X^T X / M of the column-centred training rows X; a common offset
    and a common scale of the example means, both as spread as over the training tasks; and a
    diagonal that differs by column: the variance that the other training tasks cannot explain
    there, estimated by leave-one-task-out. Conditioning on the probes gives a noisy example less
    weight. Costs O(M^2 N), without any (N, N) matrix.

    Parameters
    ----------
    noise
        Factor on the noise; by default chosen by leave-one-task-out for each number of probes.
    """

    default = 1.0
    has_intervals = True

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        super()._fit(values, observed)
        self._spread: GaussianSpread | None = None

    def candidates(self) -> Sequence[float]:
        """Factors on the noise variance."""
        return NOISES if self.noise is None else (self.noise,)

    def parts(self, total: np.ndarray) -> tuple[Prior, ColumnNoise]:
        """Mean and covariance of the training rows, a common offset and scale; columns' noise."""
        tasks = len(total) - 1
        mean = mean_row(tasks)
        offset = np.append(np.zeros(tasks), offset_spread(total))
        scale = scale_spread(total) * mean
        prior = Prior(mean=mean, basis=np.vstack([offset, scale, centring(tasks)]))
        return prior, estimate_column_noise(total)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Posterior mean for every factor on the noise."""
        return self.solver(parts, probed).weights(values, candidates)

    def solver(self, parts: tuple[Prior, ColumnNoise], probed: np.ndarray) -> Solver:
        """The posterior given probes at columns (M + 1, k) of [Z; 1]."""
        prior, noise = parts
        return Solver(prior, probed, noise=noise.variance(probed[:-1]))

    def _intervals(
        self, index: np.ndarray, values: np.ndarray, levels: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        return self.spread.intervals(index, values, levels)

    @property
    def spread(self) -> GaussianSpread:
        """Predictive spread of the fitted method, computed when it is first needed."""
        if self._spread is None:
            self._spread = GaussianSpread(self.model_, self.rows_)
        return self._spread
