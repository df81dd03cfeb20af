"""Gaussian completion: the new row conditional on all training rows, with noise per column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from lethe.completion import sibling
from lethe.completion.column_noise import ColumnNoise, estimate_column_noise
from lethe.completion.foldin import (
    FoldIn,
    Prior,
    Solver,
    centring,
    gram,
    mean_row,
    offset_spread,
    sample_columns,
    scale_spread,
)
from lethe.completion.gaussian_spread import GaussianSpread

NOISES = tuple(np.round(np.geomspace(0.1, 30, 13), 4).tolist())


@dataclass(frozen=True)
class GaussianPrior(Prior):
    """The training rows' mean and covariance, a common offset and a common scale of the mean.

    `offset` and `scale` are the standard deviations of the last two.
    """

    offset: float
    scale: float

    def variance(self, columns: np.ndarray) -> np.ndarray:
        """Prior variance (n,) at columns (M + 1, n), without noise.

        The directions' squares add up to the variance of the column over the training rows,
        offset^2 and (scale x mean)^2, which takes no product of matrices.
        """
        rows = columns[:-1]
        mean = rows.mean(axis=0)
        spread = np.einsum("in,in->n", rows, rows) / len(rows) - np.square(mean)
        return np.maximum(spread, 0.0) + self.offset**2 + np.square(self.scale * mean)


class Gaussian(FoldIn):
    """The new row is a Gaussian with the training rows' mean and covariance, plus noise.

    Covariance over examples: X^T X / M of the column-centred training rows X; a common offset
    and a common scale of the example means, both as spread as over the training tasks; and a
    diagonal that differs by column: the variance that the other training tasks cannot explain
    there, estimated by leave-one-task-out. Conditioning on the probes gives a noisy example less
    weight. Costs O(M^2 N), without any (N, N) matrix.

    If another model learned the same tasks, pass its rows as `other`. The method then completes
    the difference from that model (`lethe.completion.sibling`).

    Parameters
    ----------
    noise
        Factor on the noise; by default chosen by leave-one-task-out for each number of probes.
    """

    default = 1.0
    has_intervals = True

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def fit(self, train: np.ndarray, other: np.ndarray | None = None) -> Self:
        """Learns from training rows (M, N) in nats; NaN cells are ignored.

        Parameters
        ----------
        other
            Rows (M, N) of the same tasks and examples on another model, in nats. A row of NaN
            stands for a task that the other model did not learn.

        Raises
        ------
        ValueError
            If `train` is not a matrix or has no known cell, if `other` has another shape, or if
            one of them has an infinite cell.
        """
        super().fit(train)
        self._differences: dict[float, Gaussian] = {}
        self._other_mean: np.ndarray | None = None
        if other is not None:
            self._fit_other(other)
        return self

    def predict(
        self,
        probe_index: np.ndarray,
        probe_values: np.ndarray,
        other: np.ndarray | None = None,
    ) -> np.ndarray:
        """Completes a new row (N,) from its values (k,) at k probed columns; NaN is no probe.

        Values (R, k), of R tasks probed at the same columns, give predictions (R, N).

        Parameters
        ----------
        other
            The new task's row (N,), or rows (R, N), on the model whose rows `fit` got as `other`.
            Cells may be NaN. A row of NaN is as good as none.

        Raises
        ------
        ValueError
            As in `Completer.predict`; if `other` has another shape, or `fit` got no such rows.
        """
        if other is None:
            return super().predict(probe_index, probe_values)
        groups = self.group_by_scale(probe_index, probe_values, other)
        predicted = np.empty((sum(len(group.members) for group in groups), self.examples_))
        for group in groups:
            completed = group.method.predict(group.index, group.values)
            predicted[group.members] = completed + group.shift
        return predicted if np.ndim(probe_values) == 2 else predicted[0]

    def predict_interval(
        self,
        probe_index: np.ndarray,
        probe_values: np.ndarray,
        level: float = 0.9,
        other: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends, in the shape of a prediction, of an interval for each new cell.

        An interval contains the cell with probability `level`. `other` is as in `predict`. Then
        the interval is that of the difference from the other model.

        Raises
        ------
        ValueError
            As `predict`; if `level` is not between 0 and 1.
        """
        return self.predict_intervals(probe_index, probe_values, [level], other)[0]

    def predict_intervals(
        self,
        probe_index: np.ndarray,
        probe_values: np.ndarray,
        levels: Sequence[float],
        other: np.ndarray | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ends as of `predict_interval` for each level, for little more than the time of one.

        Raises
        ------
        ValueError
            As `predict_interval`.
        """
        if other is None:
            return super().predict_intervals(probe_index, probe_values, levels)
        groups = self.group_by_scale(probe_index, probe_values, other)
        shape = (sum(len(group.members) for group in groups), self.examples_)
        ends = [(np.empty(shape), np.empty(shape)) for _ in levels]
        for group in groups:
            of_group = group.method.predict_intervals(group.index, group.values, levels)
            for (low, high), (low_of_group, high_of_group) in zip(ends, of_group, strict=True):
                low[group.members] = low_of_group + group.shift
                high[group.members] = high_of_group + group.shift
        if np.ndim(probe_values) == 2:
            return ends
        return [(low[0], high[0]) for low, high in ends]

    def other_scale(self, probes: int) -> float:
        """Scale b of the other model's deviations for this many probes; 0 without its rows.

        It is chosen by leave-one-task-out. A model that does not help gets 0.
        """
        return self._sibling.scale(probes) if self._other_mean is not None else 0.0

    def differences(self, probes: int) -> np.ndarray:
        """The rows (M, N) that are completed: the training rows less b times the deviations."""
        return self._method_at(self.other_scale(probes)).rows_

    def group_by_scale(
        self, probe_index: np.ndarray, probe_values: np.ndarray, other: np.ndarray
    ) -> list["SameScale"]:
        """The rows to predict, grouped by the scale b of the other model's deviations.

        Arguments and errors are as of `predict`.
        """
        index, values = self.check_probes(probe_index, probe_values)
        if self._other_mean is None:
            raise ValueError(
                "predict got a row of another model, but fit did not get its training rows; call "
                "fit(train, other=rows)"
            )
        values = np.atleast_2d(values)
        rows = np.atleast_2d(np.asarray(other, dtype=np.float64))
        if rows.shape != (len(values), self.examples_):
            raise ValueError(
                f"other has shape {np.shape(other)}; expected one row of {self.examples_} examples "
                f"per predicted row ({len(values)})"
            )
        if np.isinf(rows).any():
            raise ValueError(f"other has {np.isinf(rows).sum()} infinite cells")
        scales = np.array([self.other_scale(k) for k in np.isfinite(values).sum(axis=1)])
        scales[~np.isfinite(rows).any(axis=1)] = 0.0
        groups = []
        for scale in np.unique(scales):
            members = np.flatnonzero(scales == scale)
            shift = np.zeros((len(members), self.examples_))
            if scale:
                shift = scale * sibling.new_deviations(rows[members], self._other_mean)
            groups.append(
                SameScale(
                    members=members,
                    method=self._method_at(float(scale)),
                    index=index,
                    values=values[members] - shift[:, index],
                    shift=shift,
                )
            )
        return groups

    def _learn(self, rows: np.ndarray, observed: np.ndarray) -> None:
        super()._learn(rows, observed)
        self._spread: GaussianSpread | None = None

    def _fit_other(self, other: np.ndarray) -> None:
        rows, in_sibling = sibling.split_rows(other, self.rows_.shape)
        self._other_mean = sibling.mean_of_tasks(rows, in_sibling)
        self._stacked = np.vstack([self.rows_, sibling.deviations(rows, in_sibling)])
        measured = self._observed.any(axis=0)
        stacked = self._stacked if measured.all() else self._stacked[:, measured]
        self._sibling = sibling.SiblingModel(
            Gaussian(self.noise),
            total=gram(stacked),
            columns=sample_columns(stacked),
            in_sibling=in_sibling,
        )

    def _method_at(self, scale: float) -> "Gaussian":
        if scale == 0:
            return self
        if scale not in self._differences:
            combinations = self._sibling.combinations(scale)
            method = type(self)(**self._parameters())
            method.examples_ = self.examples_
            method._learn(combinations[:-1, :-1] @ self._stacked, self._observed)
            self._differences[scale] = method
        return self._differences[scale]

    def candidates(self) -> Sequence[float]:
        """Factors on the noise variance."""
        return NOISES if self.noise is None else (self.noise,)

    def parts(self, total: np.ndarray) -> tuple[Prior, ColumnNoise]:
        """Mean and covariance of the training rows, a common offset and scale; columns' noise."""
        tasks = len(total) - 1
        mean = mean_row(tasks)
        offset = offset_spread(total)
        scale = scale_spread(total)
        directions = [np.append(np.zeros(tasks), offset), scale * mean, centring(tasks)]
        prior = GaussianPrior(mean=mean, basis=np.vstack(directions), offset=offset, scale=scale)
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


@dataclass(frozen=True, kw_only=True)
class SameScale:
    """New rows that share a scale b of the other model's deviations.

    `members` (R,) are their numbers and `method` completes their differences. `values` (R, k) are
    differences at columns `index` (k,), sorted, and `shift` (R, N) is b times the deviations.
    """

    members: np.ndarray
    method: Gaussian
    index: np.ndarray
    values: np.ndarray
    shift: np.ndarray
