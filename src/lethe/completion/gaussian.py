"""Gaussian completion: the new row conditional on all training rows, with noise per column."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.column_noise import ColumnNoise, estimate_column_noise
from lethe.completion.foldin import (
    FoldIn,
    FoldInModel,
    Prior,
    Solver,
    centring,
    mean_row,
    offset_spread,
    scale_spread,
    with_ones,
)
from lethe.completion.intervals import Calibration, LeftOutRow, calibrate

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
        self._calibrations: dict[int, Calibration] = {}

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

    def _interval(
        self, index: np.ndarray, values: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        probes = len(index)
        if probes not in self._calibrations:
            self._calibrations[probes] = calibrate(left_out_rows(self.model_, probes))
        calibration = self._calibrations[probes]
        columns = with_ones(self._rows)
        solver = self.solver(self.model_.parts, columns[:, index])
        factor = self.model_.choose(probes)
        middle = solver.weights(values, [factor])[0] @ columns
        task_size = calibration.task_size(solver.left_out_residuals(values, factor))
        cell_size = predictive_sd(self.model_.parts, solver, columns=columns, factor=factor)
        half_width = calibration.reach(level) * task_size[:, None] * cell_size
        return middle - half_width, middle + half_width


def predictive_sd(
    parts: tuple[Prior, ColumnNoise], solver: Solver, columns: np.ndarray, factor: float
) -> np.ndarray:
    """Predictive standard deviation (n,) at columns (M + 1, n), before calibration."""
    _, column_noise = parts
    noise = column_noise.variance(columns[:-1])
    return np.sqrt(solver.variance(columns, factor) + factor * noise)


def left_out_rows(model: FoldInModel, probes: int, draws: int = 5) -> list[LeftOutRow]:
    """Every training row predicted from the others, at the columns of the model's sample.

    Only measured cells are judged. A single training row is predicted from itself, because there
    is no other; its residuals carry no information.
    """
    factor = model.choose(probes)
    noises: dict[int, np.ndarray] = {}
    prior_variances: dict[int, np.ndarray] = {}
    rows = []
    for index in model.draw_probes(probes, draws):
        unprobed = np.setdiff1d(np.arange(model.sample.shape[1]), index)
        for row in range(model.tasks):
            if model.tasks > 1:
                parts, remaining = model.without_row(row)
            else:
                parts = model.parts
                remaining = [0, 1]
            columns = model.sample[remaining]
            if row not in noises:
                # These do not depend on the draw, so they are computed once per row.
                prior, column_noise = parts
                noises[row] = column_noise.variance(columns[:-1])
                prior_variances[row] = prior.variance(columns)
            solver = model.method.solver(parts, columns[:, index])
            probe_values = model.sample[row, index][None]
            # All columns are predicted, because copying the hidden ones would take longer.
            predicted = solver.weights(probe_values, [factor])[0, 0] @ columns
            variance = solver.variance(columns, factor, prior_variances[row])
            variance += factor * noises[row]
            hidden = unprobed[model.observed[row, unprobed]]
            rows.append(
                LeftOutRow(
                    residuals=model.sample[row, hidden] - predicted[hidden],
                    sizes=np.sqrt(variance[hidden]),
                    probes=solver.left_out_residuals(probe_values, factor)[0],
                )
            )
    return rows
