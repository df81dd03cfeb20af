"""Predicted mean forgetting of a task, or of each domain of the examples, with intervals.

A mean over examples is one more column of Z: the mean of their columns. The Gaussian method
predicts it with the same weights as any column. Its variance is the posterior variance of that
column plus the mean noise of the examples divided by their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lethe.completion.column_noise import ColumnNoise
from lethe.completion.foldin import Solver, with_ones
from lethe.completion.gaussian import Gaussian
from lethe.completion.gaussian_spread import count_draws
from lethe.matrix.moments import column_slices

# With fewer training tasks no interval of a mean can be calibrated.
LEAST_TASKS = 3
SLICE_COLUMNS = 4096  # columns that are processed at a time, so that they fit a cache


@dataclass(frozen=True)
class PredictedMeans:
    """Mean forgetting (R, D) in nats of R tasks over D sets of examples.

    `low` and `high` (L, R, D) are the ends of intervals of L levels. They are NaN if there are
    fewer than three training tasks.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


class MeanPredictor:
    """Predicts means over sets of examples, with intervals calibrated on left-out tasks.

    Every training task is left out in turn, and its means are predicted from random probes. The
    quantile of the standardised errors, over all tasks and sets, gives the reach of the
    intervals. It is widened as the intervals of cells are if the probes of the new task show that
    it is of another kind.

    Parameters
    ----------
    method
        A fitted Gaussian method.
    members
        Mask (D, N) of the examples of each set. One row of True gives the mean of the task.
    """

    def __init__(self, method: Gaussian, members: np.ndarray):
        self.method = method
        self.members = np.asarray(members, dtype=bool)
        _, column_noise = method.model_.parts
        slices = column_slices(method.rows_, SLICE_COLUMNS)
        self._noise = np.concatenate([column_noise.variance(part) for part in slices])
        self._scores: dict[int, np.ndarray] = {}

    def predict(
        self,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float] = (0.9,),
        among: np.ndarray | None = None,
    ) -> PredictedMeans:
        """Predicts the means from values (R, k) of R tasks at columns `index` (k,), sorted.

        Probed examples count with their measured values.

        Parameters
        ----------
        levels
            Shares of tasks whose mean an interval should contain.
        among
            Mask (N,) of the examples that means are taken over; by default all.
        """
        model = self.method.model_
        rows = self.method.rows_
        values = np.atleast_2d(values)
        members = self.members if among is None else self.members & among
        factor = model.choose(len(index))
        solver = self.method.solver(model.parts, with_ones(rows[:, index]))
        unprobed = members.copy()
        unprobed[:, index] = False
        counts = unprobed.sum(axis=1)
        means, variances = _mean_columns(
            rows, self._noise, unprobed=unprobed, solver=solver, factor=factor
        )
        predicted = solver.weights(values, [factor])[0] @ means
        total = np.maximum(members.sum(axis=1), 1)
        measured = values @ members[:, index].T.astype(float)
        predicted = (measured + counts * predicted) / total
        sizes = counts / total * np.sqrt(variances)
        residuals = solver.left_out_residuals(values, factor)
        half_widths = self._half_widths(levels, probes=residuals, sizes=sizes)
        return PredictedMeans(
            values=predicted, low=predicted - half_widths, high=predicted + half_widths
        )

    def _half_widths(
        self, levels: Sequence[float], probes: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Half-widths (L, R, D) from standardised residuals (R, k) of the probes."""
        tasks = self.method.model_.judge.tasks
        if tasks < LEAST_TASKS:
            return np.full((len(levels), len(probes), len(sizes)), np.nan)
        calibration = self.method.spread.calibration(probes.shape[1])
        scores = self._left_out_scores(probes.shape[1])
        by_level = []
        for level in levels:
            reach = np.quantile(scores, level)
            widening = calibration.pooled_reach(level, probes) / calibration.reach(level)
            task_reach = reach * widening * calibration.task_size(probes)
            by_level.append(task_reach[:, None] * sizes)
        return np.array(by_level)

    def _left_out_scores(self, probes: int) -> np.ndarray:
        """Absolute errors of left-out tasks' means, by expected size and the size of the task."""
        if probes in self._scores:
            return self._scores[probes]
        model = self.method.model_.judge
        factor = model.choose(probes)
        calibration = self.method.spread.calibration(probes)
        members = self.members[:, self.method.sampled_]
        indexes = model.draw_probes(probes, count_draws(model.tasks))
        scores = []
        for row in range(model.tasks):
            parts, remaining = model.without_row(row)
            column_noise: ColumnNoise = parts[1]
            rows = model.sample[remaining[:-1]]
            noise = column_noise.variance(rows)
            for index in indexes:
                unprobed = members & model.observed[row]
                unprobed[:, index] = False
                solver = self.method.solver(parts, with_ones(rows[:, index]))
                means, variances = _mean_columns(
                    rows, noise, unprobed=unprobed, solver=solver, factor=factor
                )
                values = model.sample[row, index][None]
                predicted = solver.weights(values, [factor])[0, 0] @ means
                counts = unprobed.sum(axis=1)
                truth = unprobed @ model.sample[row] / np.maximum(counts, 1)
                residuals = solver.left_out_residuals(values, factor)
                sizes = np.sqrt(variances) * calibration.task_size(residuals)
                scores.append((np.abs(truth - predicted) / sizes)[counts > 0])
        self._scores[probes] = np.concatenate(scores)
        return self._scores[probes]


def _mean_columns(
    rows: np.ndarray, noise: np.ndarray, *, unprobed: np.ndarray, solver: Solver, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean columns (M + 1, D) of [Z; 1] over masks (D, N), and their predictive variances (D,)."""
    weights = unprobed / np.maximum(unprobed.sum(axis=1), 1)[:, None]
    means = with_ones(rows @ weights.T)
    mean_noise = weights @ noise / np.maximum(unprobed.sum(axis=1), 1)
    variances = solver.variance(means, factor) + factor * mean_noise
    return means, np.maximum(variances, 1e-300)


def domain_masks(domains: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the domains, sorted, and the mask (D, N) of the examples of each."""
    labels = np.asarray(domains)
    names = np.unique(labels)
    return [str(name) for name in names], labels == names[:, None]
