"""Gaussian completion: the new row conditional on all training rows, with noise per column."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.column_noise import ColumnNoise, column_noise
from lethe.completion.foldin import (
    FoldIn,
    Model,
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
    diagonal that differs by column: what the other training tasks cannot explain there,
    estimated by leave-one-task-out. Conditioning on the probes weighs a noisy example less.
    One factor on the noise is chosen by leave-one-task-out for each number of probes unless
    given. Cost O(M^2 N), without any (N, N) matrix.
    """

    default = 1.0
    has_intervals = True

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        super()._fit(values, known)
        self._calibrations: dict[int, Calibration] = {}

    def candidates(self) -> Sequence[float]:
        """Factors on the noise variance."""
        return NOISES if self.noise is None else (self.noise,)

    def parts(self, total: np.ndarray) -> tuple[Prior, ColumnNoise]:
        """Mean and covariance of the training rows, a common offset and scale; columns' noise."""
        tasks = len(total) - 1
        offset = np.append(np.zeros(tasks), offset_spread(total))
        scale = scale_spread(total) * mean_row(tasks)
        prior = Prior(mean_row(tasks), np.vstack([offset, scale, centring(tasks)]))
        return prior, column_noise(total)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Posterior mean for every factor on the noise."""
        return self.solver(parts, probed).weights(values, candidates)

    def solver(self, parts: tuple[Prior, ColumnNoise], probed: np.ndarray) -> Solver:
        """The posterior given probes at columns (M + 1, k) of [Z; 1]."""
        prior, noise = parts
        return Solver(prior, probed, noise.variance(probed[:-1]))

    def _interval(self, index, values, level) -> tuple[np.ndarray, np.ndarray]:
        probes = len(index)
        if probes not in self._calibrations:
            self._calibrations[probes] = calibrate(left_out_rows(self.model, probes))
        calibration = self._calibrations[probes]
        columns = with_ones(self.rows)
        solver = self.solver(self.model.parts, columns[:, index])
        factor = self.model.choice(probes)
        middle = solver.weights(values, [factor])[0] @ columns
        task = calibration.task_size(solver.left_out(values, factor))
        reach = (
            calibration.reach(level)
            * task[:, None]
            * sizes(self.model.parts, solver, columns, factor)
        )
        return middle - reach, middle + reach


def sizes(
    parts: tuple[Prior, ColumnNoise], solver: Solver, columns: np.ndarray, factor: float
) -> np.ndarray:
    """Predictive standard deviation (n,) at columns (M + 1, n), before calibration."""
    noise = parts[1].variance(columns[:-1])
    return np.sqrt(solver.variance(columns, factor) + factor * noise)


def left_out_rows(model: Model, probes: int, draws: int = 5) -> list[LeftOutRow]:
    """Every training row predicted from the others, at the columns of the model's sample.

    Judged by measured cells only. A single training row has no other: it is predicted from
    itself, which says nothing.
    """
    factor = model.choice(probes)
    found = []
    for index in model.probes(probes, draws):
        unprobed = np.setdiff1d(np.arange(model.sample.shape[1]), index)
        for row in range(model.tasks):
            hidden = unprobed[model.known[row, unprobed]]
            parts, kept = model.without(row) if model.tasks > 1 else (model.parts, [0, 1])
            columns = model.sample[kept]
            solver = model.method.solver(parts, columns[:, index])
            values = model.sample[row, index][None]
            unseen = columns[:, hidden]
            predicted = solver.weights(values, [factor])[0, 0] @ unseen
            residuals = model.sample[row, hidden] - predicted
            expected = sizes(parts, solver, unseen, factor)
            found.append(LeftOutRow(residuals, expected, solver.left_out(values, factor)[0]))
    return found
