"""Predictive intervals whose coverage is calibrated on training tasks played as unseen ones.

Split-conformal over tasks: every training row is left out in turn, predicted from random probes,
and its absolute residuals are divided by what the method thinks their size is. The quantile of
these scores, over all left-out rows, is how far an interval must reach. A task may be noisier
than others all over: its size is corrected by how badly its own probes predict each other,
shrunk by `strength` probes towards 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lethe.completion.completer import Completer

STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0, 1e6)
# Strengths are compared by the width that intervals of this level need.
COMPARED_AT = 0.9


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
    """Sorted scores of left-out cells, and how strongly a task's size is drawn to 1."""

    scores: np.ndarray
    strength: float

    def reach(self, level: float) -> float:
        """How many sizes an interval must reach to hold a cell of an unseen task."""
        return float(np.quantile(self.scores, level))

    def task_size(self, probes: np.ndarray) -> np.ndarray:
        """Size (R,) of each row from its probes' standardised residuals (R, k)."""
        return task_size(probes, self.strength)


def task_size(probes: np.ndarray, strength: float) -> np.ndarray:
    """Root of the mean square of (R, k) residuals, as if `strength` more had been seen at 1."""
    squares = np.square(probes).sum(axis=-1)
    return np.sqrt((squares + strength) / (probes.shape[-1] + strength))


def calibrate(rows: list[LeftOutRow]) -> Calibration:
    """The calibration whose intervals are narrowest on the left-out rows."""
    found = []
    for strength in STRENGTHS:
        sizes = [row.sizes * task_size(row.probes, strength) for row in rows]
        pairs = zip(rows, sizes, strict=True)
        scores = np.sort(np.concatenate([np.abs(row.residuals) / size for row, size in pairs]))
        width = np.quantile(scores, COMPARED_AT) * np.mean([size.mean() for size in sizes])
        found.append((float(width), Calibration(scores, strength)))
    return min(found, key=lambda pair: pair[0])[1]


class Conformal(Completer):
    """Gives any method intervals; fits it once more for every training task.

    The expected size of a residual is the column's spread over the training tasks, shrunk to the
    mean of all. The probes of a task predict each other in two halves.

    Parameters
    ----------
    method
        Makes an unfitted method.
    columns, draws
        At most so many columns, and so many draws of probes, are looked at to calibrate.
    """

    has_intervals = True

    def __init__(
        self, method: Callable[[], Completer], columns: int = 2000, draws: int = 3, seed: int = 0
    ):
        self.method, self.columns, self.draws, self.seed = method, columns, draws, seed

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        if len(values) < 3:
            raise ValueError(f"{len(values)} training tasks; intervals need at least 3")
        self.values = values
        self.whole = self.method().fit(values)
        rng = np.random.default_rng([self.seed, 19])
        count = min(self.examples, self.columns)
        self.sample = np.sort(rng.permutation(self.examples)[:count])
        cut = values[:, self.sample]
        self.left_out = [self.method().fit(np.delete(cut, i, axis=0)) for i in range(len(cut))]
        self.sizes = [_spread(np.delete(cut, i, axis=0)) for i in range(len(cut))]
        self._calibrations: dict[int, Calibration] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.whole.predict(index, values)

    def _interval(self, index, values, level) -> tuple[np.ndarray, np.ndarray]:
        calibration = self._calibration(len(index))
        sizes = _spread(self.values)
        probes = _halves(self.whole, index, values) / sizes[index]
        middle = self.whole.predict(index, values)
        reach = calibration.reach(level) * calibration.task_size(probes)[:, None] * sizes
        return middle - reach, middle + reach

    def _calibration(self, probes: int) -> Calibration:
        if probes not in self._calibrations:
            rng = np.random.default_rng([self.seed, probes, 23])
            rows = [
                self._left_out(i, np.sort(rng.permutation(len(self.sample))[:probes]))
                for _ in range(self.draws)
                for i in range(len(self.values))
            ]
            self._calibrations[probes] = calibrate([row for row in rows if len(row.residuals)])
        return self._calibrations[probes]

    def _left_out(self, row: int, index: np.ndarray) -> LeftOutRow:
        truth = self.values[row, self.sample]
        # One column at least stays hidden, else there is nothing to judge by.
        index = index[: len(truth) - 1]
        index = index[np.isfinite(truth[index])]
        hidden = np.isfinite(truth)
        hidden[index] = False
        method, sizes = self.left_out[row], self.sizes[row]
        residuals = truth - method.predict(index, truth[index])
        probes = _halves(method, index, truth[None, index])[0] / sizes[index]
        return LeftOutRow(residuals[hidden], sizes[hidden], probes)


def _spread(rows: np.ndarray, prior: float = 5.0) -> np.ndarray:
    """Standard deviation (N,) of each column over the tasks, shrunk to that of all columns."""
    known = np.isfinite(rows)
    counts = known.sum(axis=0)
    filled = np.where(known, rows, 0.0)
    means = filled.sum(axis=0) / np.maximum(counts, 1)
    squares = (np.square(filled - means) * known).sum(axis=0)
    pooled = squares.sum() / max(counts.sum() - rows.shape[1], 1)
    return np.sqrt(np.maximum((squares + prior * pooled) / (counts + prior), 1e-12))


def _halves(method: Completer, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Residuals (R, k) of probes predicted from the other half; none from fewer than two."""
    if len(index) < 2:
        return np.empty((len(values), 0))
    residuals = np.empty_like(values)
    odd = np.arange(len(index)) % 2 == 1
    for half in (odd, ~odd):
        predicted = method.predict(index[half], values[:, half])
        residuals[:, ~half] = values[:, ~half] - predicted[:, index[~half]]
    return residuals
