"""Predictive intervals, calibrated on training tasks that are treated as unseen.

Split-conformal over tasks: every training row is left out in turn and predicted from random
probes, and its absolute residuals are divided by the size that the method expects of them. The
quantile of these scores is the reach that an interval needs. Some tasks are noisier than others
in all cells, so a task's size is corrected by how badly its own probes predict each other, shrunk
by `strength` probes towards 1.

A task of a new kind is predicted worse than the training tasks predict each other. Its own probes
show that, once there are enough of them. So the scores of its probes, each predicted from the
others, are pooled with those of the training tasks, which together weigh as much as
`TRAINING_WEIGHT` probes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lethe.completion.completer import Completer

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e6)
# Strengths are compared by the width that intervals of this level need.
COMPARED_AT = 0.9
# Weight of the training tasks' scores beside the new task's own probes, which weigh 1 each. A
# weight of 10 covers better from 30 probes on, and loses 1 to 2 points at 10 probes.
TRAINING_WEIGHT = 30.0


@dataclass(frozen=True)
class LeftOutRow:
    """One left-out row with one draw of probes.

    Residuals (n,) at unprobed columns, their expected sizes (n,), and residuals (k,) of each
    probe predicted from others, by expected size.
    """

    residuals: np.ndarray
    sizes: np.ndarray
    probes: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of left-out cells, and how strongly a task's size is shrunk to 1."""

    scores: np.ndarray
    strength: float

    def reach(self, level: float) -> float:
        """Half-width, in expected sizes, with which an interval covers a cell of an unseen task."""
        return float(np.quantile(self.scores, level))

    def pooled_reach(self, level: float, probes: np.ndarray) -> np.ndarray:
        """Half-width (R,), in expected sizes of each task, pooled with the tasks' own scores.

        It is the quantile of both kinds of scores: the training tasks' have the total weight
        `TRAINING_WEIGHT`, the probes' the weight 1 each.

        Parameters
        ----------
        probes
            Standardised residuals (R, k) of each probe predicted from the others.
        """
        scores = np.sort(np.abs(probes) / self.task_size(probes)[:, None], axis=1)
        count = scores.shape[1]
        weight = level * (TRAINING_WEIGHT + count)
        # With the m smallest probe scores inside, training scores must fill up the weight. Each m
        # gives a reach that is large enough; the smallest of them is the quantile.
        shares = (weight - np.arange(count + 1)) / TRAINING_WEIGHT
        training = np.quantile(self.scores, np.clip(shares, 0.0, 1.0))
        training[shares > 1.0] = np.inf
        training[shares <= 0.0] = 0.0
        smallest = np.hstack([np.zeros((len(scores), 1)), scores])
        return np.maximum(smallest, training).min(axis=1)

    def half_widths(
        self, levels: Sequence[float], probes: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Half-widths (L, R, N) of the intervals of R tasks.

        Parameters
        ----------
        probes
            Standardised residuals (R, k) of each probe predicted from the others.
        sizes
            Expected size (N,) of a residual at each column.
        """
        task_sizes = self.task_size(probes)
        by_level = []
        for level in levels:
            reach = self.pooled_reach(level, probes) * task_sizes
            by_level.append(reach[:, None] * sizes)
        return np.array(by_level)

    def task_size(self, probes: np.ndarray) -> np.ndarray:
        """Size (R,) of each row from its probes' standardised residuals (R, k)."""
        return shrunk_size(probes, self.strength)


def shrunk_size(probes: np.ndarray, strength: float) -> np.ndarray:
    """Root mean square of residuals (R, k), as if there were `strength` further ones of size 1."""
    squares = np.square(probes).sum(axis=-1)
    return np.sqrt((squares + strength) / (probes.shape[-1] + strength))


def calibrate(rows: Sequence[LeftOutRow]) -> Calibration:
    """The calibration whose intervals are narrowest on the left-out rows.

    Raises
    ------
    ValueError
        If no row has a residual.
    """
    rows = [row for row in rows if len(row.residuals)]
    if not rows:
        raise ValueError("no left-out row has a measured cell to calibrate intervals on")
    narrowest = float("inf")
    best = None
    for strength in STRENGTHS:
        sizes = [row.sizes * shrunk_size(row.probes, strength) for row in rows]
        scores = []
        for row, size in zip(rows, sizes, strict=True):
            scores.append(np.abs(row.residuals) / size)
        calibration = Calibration(scores=np.sort(np.concatenate(scores)), strength=strength)
        mean_size = np.mean([size.mean() for size in sizes])
        width = float(np.quantile(calibration.scores, COMPARED_AT) * mean_size)
        if best is None or width < narrowest:
            narrowest = width
            best = calibration
    return best


class Conformal(Completer):
    """Adds intervals to any method; fits it once more for every training task.

    The expected size of a residual is the column's spread over the training tasks, shrunk to the
    mean of all. The probes of a task predict each other in two halves.

    Parameters
    ----------
    method
        Makes an unfitted method.
    columns, draws
        Calibration uses at most this many columns and this many draws of probes.

    Attributes
    ----------
    fitted_ : Completer
        The method, fitted on all training rows.
    """

    has_intervals = True

    def __init__(
        self, method: Callable[[], Completer], columns: int = 2000, draws: int = 3, seed: int = 0
    ):
        self.method = method
        self.columns = columns
        self.draws = draws
        self.seed = seed

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        if len(values) < 3:
            raise ValueError(f"{len(values)} training tasks; intervals need at least 3")
        self._values = values
        self.fitted_ = self.method().fit(values)
        rng = np.random.default_rng([self.seed, 19])
        count = min(self.examples_, self.columns)
        self._sample = np.sort(rng.permutation(self.examples_)[:count])
        sampled = values[:, self._sample]
        self._fitted_without = []
        self._sizes_without = []
        for row in range(len(sampled)):
            others = np.delete(sampled, row, axis=0)
            self._fitted_without.append(self.method().fit(others))
            self._sizes_without.append(_column_spread(others))
        self._calibrations: dict[int, Calibration] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.fitted_.predict(index, values)

    def _intervals(
        self, index: np.ndarray, values: np.ndarray, levels: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        sizes = _column_spread(self._values)
        probes = _half_residuals(self.fitted_, index, values) / sizes[index]
        middle = self.fitted_.predict(index, values)
        return middle, self._calibration(len(index)).half_widths(levels, probes, sizes)

    def _calibration(self, probes: int) -> Calibration:
        if probes not in self._calibrations:
            rng = np.random.default_rng([self.seed, probes, 23])
            rows = []
            for _ in range(self.draws):
                for number in range(len(self._values)):
                    index = np.sort(rng.permutation(len(self._sample))[:probes])
                    rows.append(self._left_out_row(number, index))
            self._calibrations[probes] = calibrate(rows)
        return self._calibrations[probes]

    def _left_out_row(self, number: int, index: np.ndarray) -> LeftOutRow:
        truth = self._values[number, self._sample]
        # At least one column stays hidden, because probed cells cannot be judged.
        index = index[: len(truth) - 1]
        index = index[np.isfinite(truth[index])]
        hidden = np.isfinite(truth)
        hidden[index] = False
        method = self._fitted_without[number]
        sizes = self._sizes_without[number]
        residuals = truth - method.predict(index, truth[index])
        probes = _half_residuals(method, index, truth[None, index])[0] / sizes[index]
        return LeftOutRow(residuals=residuals[hidden], sizes=sizes[hidden], probes=probes)


def _column_spread(rows: np.ndarray, prior: float = 5.0) -> np.ndarray:
    """Standard deviation (N,) of each column over the tasks, shrunk to that of all columns."""
    observed = np.isfinite(rows)
    counts = observed.sum(axis=0)
    filled = np.where(observed, rows, 0.0)
    means = filled.sum(axis=0) / np.maximum(counts, 1)
    squares = (np.square(filled - means) * observed).sum(axis=0)
    # Each measured column has a mean of its own.
    pooled = squares.sum() / max(counts.sum() - (counts > 0).sum(), 1)
    return np.sqrt(np.maximum((squares + prior * pooled) / (counts + prior), 1e-12))


def _half_residuals(method: Completer, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Residuals (R, k) of probes predicted from the other half; none from fewer than two."""
    if len(index) < 2:
        return np.empty((len(values), 0))
    residuals = np.empty_like(values)
    odd_numbers = np.arange(len(index)) % 2 == 1
    for half in (odd_numbers, ~odd_numbers):
        predicted = method.predict(index[half], values[:, half])
        residuals[:, ~half] = values[:, ~half] - predicted[:, index[~half]]
    return residuals
