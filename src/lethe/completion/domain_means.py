"""Predicted mean forgetting of a task, or of each domain of the examples, with intervals.

A mean over examples is one more column of Z: the mean of their columns. The Gaussian method
predicts it with the same weights as any column. Its variance is the posterior variance of that
column plus the mean noise of the examples divided by their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from lethe.completion.completer import group_by_measured_columns
from lethe.completion.foldin import FoldInModel, Solver, with_ones
from lethe.completion.gaussian import Gaussian
from lethe.matrix.moments import column_slices

# With fewer training tasks no interval of a mean can be calibrated.
LEAST_TASKS = 3
SLICE_COLUMNS = 4096  # columns that are processed at a time, so that they fit a cache
# Every training row is left out with so many draws of probes, and with fewer where that would be
# more left-out rows than this. Every row has draws of its own: a draw gives one score per set,
# where it gives hundreds of cells, and errors of means from the same probes are alike.
LARGEST_DRAWS = 20
LEFT_OUT_ROWS = 420


@dataclass(frozen=True)
class PredictedMeans:
    """Mean forgetting (R, D) in nats of R tasks over D sets of examples.

    `low` and `high` (L, R, D) are the ends of intervals of L levels. They are NaN if there are
    fewer than three training tasks, or if these are predicted from one another without an error:
    then nothing says how large errors are.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


class MeanPredictor:
    """Predicts means over sets of examples, with intervals calibrated on left-out tasks.

    Every training task is left out in turn, and its means are predicted from random probes. The
    quantile of the standardised errors gives the reach of the intervals. The set of all examples,
    whose mean is that of the task, has a quantile of its own; all other sets share one. The reach
    is widened as the intervals of cells are if the probes of the new task show that it is of
    another kind.

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
        self._scores: dict[int, np.ndarray] = {}
        self._predictors: dict[int, MeanPredictor] = {}

    def predict(
        self,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float] = (0.9,),
        among: np.ndarray | None = None,
        other: np.ndarray | None = None,
    ) -> PredictedMeans:
        """Predicts the means from values (k,) or (R, k), of R tasks, at columns `index` (k,).

        Probed examples count with their measured values. NaN is no probe.

        Parameters
        ----------
        levels
            Shares of tasks whose mean an interval should contain.
        among
            Mask (N,) of the examples that means are taken over; by default all.
        other
            Rows (N,) or (R, N) of the tasks on another model, as in `Gaussian.predict`. The
            intervals are then those of the difference from that model.

        Raises
        ------
        ValueError
            As `Gaussian.predict`.
        """
        if other is None:
            index, values = self.method.check_probes(index, values)
            return self._predict_rows(index, np.atleast_2d(values), levels, among)
        groups = self.method.group_by_scale(index, values, other)
        tasks = sum(len(group.members) for group in groups)
        means = _empty_means(len(levels), tasks=tasks, sets=len(self.members))
        for group in groups:
            predictor = self._predictor_of(group.method)
            of_group = predictor._predict_rows(group.index, group.values, levels, among)
            # The mean of b times the deviations is added back to that of the difference.
            shift = self._mean_over_sets(group.shift, among)
            means.values[group.members] = of_group.values + shift
            means.low[:, group.members] = of_group.low + shift
            means.high[:, group.members] = of_group.high + shift
        return means

    def _predictor_of(self, method: Gaussian) -> "MeanPredictor":
        """The predictor of the same means with the method on differences from another model."""
        if method is self.method:
            return self
        if id(method) not in self._predictors:
            self._predictors[id(method)] = MeanPredictor(method, self.members)
        return self._predictors[id(method)]

    def _mean_over_sets(self, rows: np.ndarray, among: np.ndarray | None) -> np.ndarray:
        """Means (R, D) of rows (R, N) over the examples of each set."""
        members = self.members if among is None else self.members & among
        return rows @ members.T.astype(float) / np.maximum(members.sum(axis=1), 1)

    def _predict_rows(
        self,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float],
        among: np.ndarray | None,
    ) -> PredictedMeans:
        """Predicts from values (R, k), with NaN for no probe, at sorted columns (k,)."""
        means = _empty_means(len(levels), tasks=len(values), sets=len(self.members))
        for rows, columns in group_by_measured_columns(values):
            probed = values[np.ix_(rows, columns)]
            middle, half_widths = self._predict_probed(index[columns], probed, levels, among)
            means.values[rows] = middle
            means.low[:, rows] = middle - half_widths
            means.high[:, rows] = middle + half_widths
        return means

    def _predict_probed(
        self,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float],
        among: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means (R, D) and half-widths (L, R, D) from values (R, k) without NaN."""
        model = self.method.model_
        factor = model.choose(len(index))
        probed = with_ones(self.method.rows_[:, index])
        solver = self.method.solver(model.parts, probed)
        members = self.members if among is None else self.members & among
        everything = self._sums_of_all if among is None else self._sums(members)
        at_probes = _Sums.over(probed, noise=self._noise[index], members=members[:, index])
        unprobed = everything.without(at_probes)
        predicted = solver.weights(values, [factor])[0] @ unprobed.means()
        total = np.maximum(everything.counts, 1)
        measured = values @ members[:, index].T.astype(float)
        middle = (measured + unprobed.counts * predicted) / total
        sizes = unprobed.counts / total * np.sqrt(unprobed.variances(solver, factor))
        residuals = solver.left_out_residuals(values, factor)
        return middle, self._half_widths(levels, probes=residuals, sizes=sizes)

    @cached_property
    def _noise(self) -> np.ndarray:
        """Noise variance (N,) of the columns."""
        _, column_noise = self.method.model_.parts
        slices = column_slices(self.method.rows_, SLICE_COLUMNS)
        return np.concatenate([column_noise.variance(part) for part in slices])

    @cached_property
    def _sums_of_all(self) -> "_Sums":
        return self._sums(self.members)

    def _sums(self, members: np.ndarray) -> "_Sums":
        """Sums over all columns that are in each set (D, N)."""
        weights = members.T.astype(float)
        counts = members.sum(axis=1)
        # Appending the row of ones to the rows would copy them.
        columns = np.vstack([self.method.rows_ @ weights, counts])
        return _Sums(columns=columns, noise=self._noise @ weights, counts=counts)

    def _half_widths(
        self, levels: Sequence[float], probes: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Half-widths (L, R, D) from standardised residuals (R, k) of the probes."""
        tasks = self.method.model_.judge.tasks
        if tasks < LEAST_TASKS:
            return np.full((len(levels), len(probes), len(sizes)), np.nan)
        calibration = self.method.spread.calibration(probes.shape[1])
        by_level = []
        for level in levels:
            usual_reach = calibration.reach(level)
            if usual_reach == 0:
                by_level.append(np.full((len(probes), len(sizes)), np.nan))
                continue
            widening = calibration.pooled_reach(level, probes) / usual_reach
            task_reach = widening * calibration.task_size(probes)
            by_level.append(task_reach[:, None] * self._reach(level, probes.shape[1]) * sizes)
        return np.array(by_level)

    def _reach(self, level: float, probes: int) -> np.ndarray:
        """Half-width (D,) of each set's interval in expected sizes."""
        scores = self._left_out_scores(probes)
        is_task = self.members.all(axis=1)
        reach = np.full(len(is_task), np.nan)
        for kind in (is_task, ~is_task):
            of_kind = scores[:, kind]
            measured = of_kind[np.isfinite(of_kind)]
            if len(measured) == 0:
                measured = scores[np.isfinite(scores)]
            if len(measured):
                reach[kind] = np.quantile(measured, level)
        return reach

    def _left_out_scores(self, probes: int) -> np.ndarray:
        """Absolute errors (S, D) of left-out tasks' means, by expected size and size of the task.

        They are NaN for a set without an unprobed measured example.
        """
        if probes not in self._scores:
            model = self.method.model_.judge
            draws = _count_draws(model.tasks)
            indexes = model.draw_probes(probes, draws * model.tasks)
            scores = []
            for row in range(model.tasks):
                of_row = indexes[row * draws : (row + 1) * draws]
                scores += self._scores_of_row(model, row, of_row)
            self._scores[probes] = np.array(scores)
        return self._scores[probes]

    def _scores_of_row(
        self, model: FoldInModel, row: int, indexes: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Scores (D,) of one left-out row for each draw of probes."""
        parts, remaining = model.without_row(row)
        _, column_noise = parts
        noise = column_noise.variance(model.sample[remaining[:-1]])
        members = self.members[:, self.method.sampled_] & model.observed[row]
        everything = _Sums.over(model.sample, noise=noise, members=members)
        scores = []
        for index in indexes:
            probed = model.sample[:, index]
            at_probes = _Sums.over(probed, noise=noise[index], members=members[:, index])
            unprobed = everything.without(at_probes)
            truth = unprobed.means()[row]
            others = unprobed.of_rows(remaining)
            scores.append(
                self._score(
                    others, parts=parts, probed=probed[remaining], values=probed[row], truth=truth
                )
            )
        return scores

    def _score(
        self,
        unprobed: "_Sums",
        *,
        parts: tuple,
        probed: np.ndarray,
        values: np.ndarray,
        truth: np.ndarray,
    ) -> np.ndarray:
        """Scores (D,) of means that are predicted from values (k,) at columns (M + 1, k)."""
        factor = self.method.model_.choose(len(values))
        solver = self.method.solver(parts, probed)
        predicted = solver.weights(values[None], [factor])[0, 0] @ unprobed.means()
        residuals = solver.left_out_residuals(values[None], factor)
        task_size = self.method.spread.calibration(len(values)).task_size(residuals)
        sizes = task_size * np.sqrt(unprobed.variances(solver, factor))
        return np.where(unprobed.counts > 0, np.abs(truth - predicted) / sizes, np.nan)


@dataclass(frozen=True)
class _Sums:
    """Sums over the examples of D sets, and their counts (D,).

    `columns` (M + 1, D) are sums of the columns of [Z; 1], `noise` (D,) of the noise variances.
    """

    columns: np.ndarray
    noise: np.ndarray
    counts: np.ndarray

    @classmethod
    def over(cls, columns: np.ndarray, noise: np.ndarray, members: np.ndarray) -> Self:
        """The sums of columns (M + 1, n) and noise variances (n,) over sets (D, n)."""
        weights = members.T.astype(float)
        return cls(columns=columns @ weights, noise=noise @ weights, counts=members.sum(axis=1))

    def without(self, part: Self) -> Self:
        """The sums over the examples that are not in `part`."""
        return type(self)(
            columns=self.columns - part.columns,
            noise=self.noise - part.noise,
            counts=self.counts - part.counts,
        )

    def of_rows(self, rows: np.ndarray) -> Self:
        """The sums of some rows of [Z; 1]."""
        return type(self)(columns=self.columns[rows], noise=self.noise, counts=self.counts)

    def means(self) -> np.ndarray:
        """Mean columns (M + 1, D) of [Z; 1]."""
        return self.columns / np.maximum(self.counts, 1)

    def variances(self, solver: Solver, factor: float) -> np.ndarray:
        """Predictive variances (D,) of the means: that of the mean column, and mean noise."""
        noise = self.noise / np.square(np.maximum(self.counts, 1))
        return np.maximum(solver.variance(self.means(), factor) + factor * noise, 1e-300)


def _empty_means(levels: int, tasks: int, sets: int) -> PredictedMeans:
    shape = (levels, tasks, sets)
    return PredictedMeans(values=np.empty(shape[1:]), low=np.empty(shape), high=np.empty(shape))


def _count_draws(tasks: int) -> int:
    return min(LARGEST_DRAWS, max(1, LEFT_OUT_ROWS // tasks))


def domain_masks(domains: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Names of the domains, sorted, and the mask (D, N) of the examples of each."""
    labels = np.asarray(domains)
    names = np.unique(labels)
    return [str(name) for name in names], labels == names[:, None]
