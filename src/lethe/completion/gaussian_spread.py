"""How far the Gaussian method's predictions of single cells may be off, calibrated."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.foldin import FoldInModel, Solver, with_ones
from lethe.completion.intervals import Calibration, LeftOutRow, calibrate
from lethe.matrix.moments import column_slices

# Columns at which left-out rows are judged. More make the quantiles hardly better, because the
# cells of one row are far from independent.
JUDGED_COLUMNS = 400
# Every training row is left out with so many draws of probes, and with fewer where that would be
# more left-out rows than this.
LARGEST_DRAWS = 5
LEFT_OUT_ROWS = 420
CACHED_COLUMNS = 4096  # columns that are processed at a time, so that they fit a cache


class GaussianSpread:
    """Predictive spread of a fitted Gaussian method, and its calibration per number of probes.

    Parameters
    ----------
    model
        Statistics of the training rows.
    rows
        Training rows (M, N) without NaN.
    """

    def __init__(self, model: FoldInModel, rows: np.ndarray):
        self._model = model
        self._rows = rows
        prior, noise = model.parts
        noises = []
        variances = []
        for part in column_slices(rows, CACHED_COLUMNS):
            noises.append(noise.variance(part))
            variances.append(prior.variance(with_ones(part)))
        self._noise = np.concatenate(noises)
        self._prior_variance = np.concatenate(variances)
        self._calibrations: dict[int, Calibration] = {}

    def calibration(self, probes: int) -> Calibration:
        """The calibration of intervals from this number of probes."""
        if probes not in self._calibrations:
            self._calibrations[probes] = calibrate(left_out_rows(self._model.judge, probes))
        return self._calibrations[probes]

    def intervals(
        self, index: np.ndarray, values: np.ndarray, levels: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Middle (R, N) and half-widths (L, R, N) from values (R, k) at columns `index` (k,)."""
        calibration = self.calibration(len(index))
        factor = self._model.choose(len(index))
        solver = self._model.method.solver(self._model.parts, with_ones(self._rows[:, index]))
        weights = solver.weights(values, [factor])[0]
        middle = weights[:, :-1] @ self._rows + weights[:, -1:]
        sizes = self._sizes(solver, factor)
        probes = solver.left_out_residuals(values, factor)
        return middle, calibration.half_widths(levels, probes=probes, sizes=sizes)

    def _sizes(self, solver: Solver, factor: float) -> np.ndarray:
        """Predictive standard deviation (N,) before calibration."""
        variances = []
        priors = column_slices(self._prior_variance[None], CACHED_COLUMNS)
        parts = column_slices(self._rows, CACHED_COLUMNS)
        for part, prior in zip(parts, priors, strict=True):
            variances.append(solver.variance(with_ones(part), factor, prior[0]))
        return np.sqrt(np.concatenate(variances) + factor * self._noise)


def left_out_rows(model: FoldInModel, probes: int) -> list[LeftOutRow]:
    """Every training row predicted from the others, at some columns of the model's sample.

    Only measured cells are judged. A single training row is predicted from itself, because there
    is no other; its residuals carry no information.
    """
    factor = model.choose(probes)
    indexes = model.draw_probes(probes, count_draws(model.tasks))
    judged = _judged_columns(model, probes)
    rows = []
    for row in range(model.tasks):
        if model.tasks > 1:
            parts, remaining = model.without_row(row)
        else:
            parts = model.parts
            remaining = np.array([0, 1])
        prior, column_noise = parts
        columns = model.sample[np.ix_(remaining, judged)]
        # These do not depend on the draw, so they are computed once per row.
        noise = factor * column_noise.variance(columns[:-1])
        before_probes = prior.variance(columns)
        for index in indexes:
            solver = model.method.solver(parts, model.sample[np.ix_(remaining, index)])
            probe_values = model.sample[row, index][None]
            predicted = solver.weights(probe_values, [factor])[0, 0] @ columns
            variance = solver.variance(columns, factor, before_probes) + noise
            hidden = model.observed[row, judged] & ~np.isin(judged, index)
            rows.append(
                LeftOutRow(
                    residuals=(model.sample[row, judged] - predicted)[hidden],
                    sizes=np.sqrt(variance[hidden]),
                    probes=solver.left_out_residuals(probe_values, factor)[0],
                )
            )
    return rows


def count_draws(tasks: int) -> int:
    """Draws of probes with which each of so many training tasks is left out."""
    return min(LARGEST_DRAWS, max(1, LEFT_OUT_ROWS // tasks))


def _judged_columns(model: FoldInModel, probes: int) -> np.ndarray:
    """Numbers of the columns of the sample at which left-out rows are judged, sorted."""
    columns = model.sample.shape[1]
    if columns <= JUDGED_COLUMNS + probes:
        return np.arange(columns)
    rng = np.random.default_rng([model.seed, 59])
    return np.sort(rng.choice(columns, JUDGED_COLUMNS, replace=False))
