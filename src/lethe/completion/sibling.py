"""Completion of the difference from another model: a sibling that learned the same tasks.

A smaller model of the same family, fine-tuned on the same tasks, often forgets the same examples.
Its rows Y enter as a difference: with column means y of its training rows, every row Z_i becomes
D_i = Z_i - b (Y_i - y). A completion method is fitted on D, the probes of a new task are reduced by
b (Y_new - y) likewise, and the same is added back to the prediction. The scale b is a multiple of
the least-squares slope of Z on Y over the training cells. Which multiple is chosen by
leave-one-task-out, and 0, which ignores the sibling, is among the choices.

All choices need no more than the Gram matrix of [Z; V; 1], where V are the deviations Y - y, and
a sample of columns, so Z and Y can be streamed.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.foldin import FoldIn, FoldInModel, draw_columns, squared_errors
from lethe.completion.other_model import read_other_model
from lethe.matrix.forgetting_matrix import Matrix

MULTIPLES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Least number of left-out predictions that a multiple is judged by. Fewer than for other settings
# are enough, because all multiples are judged on the same tasks and probes.
LEFT_OUT = 20
# With more tasks than MANY_TASKS, a multiple is chosen on JUDGED_TASKS of them, drawn at random:
# the time of leaving every task out grows with the fourth power of their number.
MANY_TASKS = 128
JUDGED_TASKS = 64
# With fewer tasks on both models a left-out task would leave no slope to estimate.
FEWEST_TASKS = 3


class SiblingModel:
    """Statistics of the training rows of Z and of the same tasks on another model.

    Parameters
    ----------
    total
        Gram matrix (2M + 1, 2M + 1) of [Z; V; 1] over all columns. V (M, N) are the sibling's rows
        minus their mean row (`deviations`), zeros for a task that the sibling did not learn.
    columns
        Columns (2M, n) of [Z; V] at which a multiple is judged: all, or a random part.
    in_sibling
        Mask (M,) of the tasks that the sibling learned.
    """

    def __init__(
        self,
        method: FoldIn,
        total: np.ndarray,
        columns: np.ndarray,
        in_sibling: np.ndarray,
        seed: int = 0,
    ):
        self.method = method
        self.total = total
        self.columns = columns
        self.in_sibling = np.asarray(in_sibling, dtype=bool)
        self.seed = seed
        self._multiples: dict[int, float] = {}

    @property
    def tasks(self) -> int:
        """M, the number of training rows."""
        return len(self.in_sibling)

    def scale(self, probes: int) -> float:
        """The scale b for this number of probes; 0 if the sibling does not help."""
        multiple = self.multiple(probes)
        return multiple * self._slope() if multiple else 0.0

    def multiple(self, probes: int) -> float:
        """The multiple of the slope with the least squared error of left-out tasks."""
        enough = self.in_sibling.sum() >= FEWEST_TASKS and self.columns.shape[1] > 1
        if not enough:
            return 0.0
        if self._judge is not self:
            return self._judge.multiple(probes)
        if probes not in self._multiples:
            errors = [self._left_out_error(multiple, probes) for multiple in MULTIPLES]
            self._multiples[probes] = MULTIPLES[int(np.argmin(errors))]
        return self._multiples[probes]

    @cached_property
    def _judge(self) -> "SiblingModel":
        """The model on which the multiple is chosen: this one, or one of `JUDGED_TASKS` tasks."""
        if self.tasks <= MANY_TASKS:
            return self
        members = np.flatnonzero(self.in_sibling)
        count = min(JUDGED_TASKS, len(members))
        rng = np.random.default_rng([self.seed, 53])
        rows = np.sort(rng.choice(members, count, replace=False))
        numbers = np.concatenate([rows, rows + self.tasks, [2 * self.tasks]])
        # The deviations are from the mean of the selected tasks.
        centring = np.eye(2 * count + 1)
        centring[count:-1, count:-1] -= 1 / count
        return SiblingModel(
            self.method,
            total=centring @ self.total[np.ix_(numbers, numbers)] @ centring.T,
            columns=centring[:-1, :-1] @ self.columns[numbers[:-1]],
            in_sibling=np.ones(count, dtype=bool),
            seed=self.seed,
        )

    def combinations(self, scale: float) -> np.ndarray:
        """(M + 1, 2M + 1): the combinations of [Z; V; 1] that are [D; 1].

        A task without a row of the sibling has no difference. It enters as its own deviation from
        the mean row, reduced to the spread that differences have on average.
        """
        return self._combinations(scale, left_out=None)

    def difference_model(self, scale: float, observed: np.ndarray) -> FoldInModel:
        """The statistics of the method on the differences; `observed` (M, n) as in `columns`."""
        combinations = self.combinations(scale)
        return FoldInModel(
            self.method,
            total=combinations @ self.total @ combinations.T,
            columns=combinations[:-1, :-1] @ self.columns,
            seed=self.seed,
            observed=observed,
        )

    def _slope(self, left_out: int | None = None) -> float:
        """Least-squares slope of Z on V over the training cells; 0 if V is constant."""
        products, squares, _ = self._sums(left_out)
        return products / squares if squares > 0 else 0.0

    def _sums(self, left_out: int | None) -> tuple[float, float, float]:
        """Sums over training cells of (Z - z) V, of V^2 and of (Z - z)^2, z the mean row of Z.

        Both means are those of the tasks that the sums are over. A task that is left out changes
        the means, which is why its products count K / (K - 1) times (K is the number of tasks).
        """
        tasks = np.flatnonzero(self.in_sibling)
        count = len(tasks)
        rows_z = self.total[np.ix_(tasks, tasks)]
        rows_v = self.total[np.ix_(tasks + self.tasks, tasks + self.tasks)]
        crossed = self.total[np.ix_(tasks, tasks + self.tasks)]
        products = np.diag(crossed) - crossed.mean(axis=0)
        squares = np.diag(rows_v)
        spread = np.diag(rows_z) - 2 * rows_z.mean(axis=0) + rows_z.mean()
        sums = np.array([products.sum(), squares.sum(), spread.sum()])
        if left_out is not None:
            number = int(np.searchsorted(tasks, left_out))
            of_task = np.array([products[number], squares[number], spread[number]])
            sums -= count / (count - 1) * of_task
        return float(sums[0]), float(sums[1]), float(sums[2])

    def _combinations(self, scale: float, left_out: int | None) -> np.ndarray:
        count = int(self.in_sibling.sum())
        tasks = self.tasks
        combinations = np.eye(tasks + 1, 2 * tasks + 1)
        combinations[-1] = 0.0
        combinations[-1, -1] = 1.0
        members = np.flatnonzero(self.in_sibling)
        combinations[members, members + tasks] = -scale
        if left_out is not None:
            # The mean row of the sibling is then that of the other tasks.
            combinations[members, left_out + tasks] -= scale / (count - 1)
        others = np.flatnonzero(~self.in_sibling)
        if len(others) and scale:
            products, squares, spread = self._sums(left_out)
            remaining = spread - 2 * scale * products + scale**2 * squares
            share = np.sqrt(max(remaining, 0.0) / spread) if spread > 0 else 1.0
            mean_of = members if left_out is None else members[members != left_out]
            combinations[others, others] = share
            combinations[np.ix_(others, mean_of)] = (1 - share) / len(mean_of)
        return combinations

    def _left_out_error(self, multiple: float, probes: int) -> float:
        """Squared error over unprobed cells of the tasks of both models, each left out in turn."""
        candidates = self.method.candidates() if probes else [self.method.default]
        members = np.flatnonzero(self.in_sibling)
        draws = draw_columns(
            self.columns.shape[1],
            count=probes,
            draws=-(-LEFT_OUT // len(members)) if probes else 1,
            seed=self.seed,
        )
        errors = np.zeros(len(candidates))
        for row in members:
            scale = multiple * self._slope(left_out=row)
            combinations = self._combinations(scale, left_out=row)
            total = combinations @ self.total @ combinations.T
            remaining = np.delete(np.arange(len(total)), row)
            parts = self.method.parts(total[np.ix_(remaining, remaining)])
            for index in draws:
                probed = combinations[:, :-1] @ self.columns[:, index]
                probed[-1] = 1.0
                errors += squared_errors(
                    self.method,
                    parts=parts,
                    total=total,
                    probed=probed,
                    row=row,
                    candidates=candidates,
                )
        return float(errors.min())


def split_rows(other: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Checks the sibling's rows (M, N); returns them without NaN, and the mask (M,) of its tasks.

    A row without any value stands for a task that the sibling did not learn. Single missing cells
    of other rows are filled by the additive fit.

    Raises
    ------
    ValueError
        If the shape differs from `shape`, or a cell is infinite.
    """
    rows = np.array(other, dtype=np.float64)
    if rows.shape != shape:
        raise ValueError(
            f"other has shape {rows.shape}; expected that of train, {shape}: one row per training "
            "task, on the same examples (NaN for a task that the other model did not learn)"
        )
    if np.isinf(rows).any():
        raise ValueError(f"other has {np.isinf(rows).sum()} infinite cells; use NaN if unknown")
    observed = np.isfinite(rows)
    in_sibling = observed.any(axis=1)
    rows[~in_sibling] = 0.0
    if in_sibling.any():
        rows[in_sibling] = fill(rows[in_sibling], observed[in_sibling])
    return rows, in_sibling


def mean_of_tasks(rows: np.ndarray, in_sibling: np.ndarray) -> np.ndarray:
    """Mean row (n,) of the sibling's tasks at columns (M, n); 0 if it learned none."""
    return in_sibling @ rows / max(int(in_sibling.sum()), 1)


def deviations(rows: np.ndarray, in_sibling: np.ndarray) -> np.ndarray:
    """V (M, n): columns (M, n) of the sibling minus their mean; 0 for tasks that it lacks."""
    return (rows - mean_of_tasks(rows, in_sibling)) * in_sibling[:, None]


def new_deviations(
    rows: np.ndarray, mean_row: np.ndarray, offsets: np.ndarray | Sequence[float] | None = None
) -> np.ndarray:
    """The sibling's rows (R, n) of new tasks minus its mean row (n,).

    A missing cell gets the row's mean deviation, `offsets` (R,), by default that of its other
    cells.
    """
    deviating = rows - mean_row
    observed = np.isfinite(deviating)
    if observed.all():
        return deviating
    if offsets is None:
        sums = np.where(observed, deviating, 0.0).sum(axis=1)
        offsets = sums / np.maximum(observed.sum(axis=1), 1)
    return np.where(observed, deviating, np.asarray(offsets)[:, None])


def read_sibling_rows(path: Path, z: Matrix) -> np.ndarray:
    """Reads another model's rows (M, N) of the tasks and examples of a Z, in the order of Z.

    A task that the other model did not learn is a row of NaN.

    Raises
    ------
    LetheError
        If the file is no Z, lacks some of the examples, or has none of the tasks.
    """
    other = read_other_model(path, z, role="a sibling", rule="must have learned the same tasks")
    names = set(other.tasks)
    shared = [task for task in z.tasks if task in names]
    rows = np.full(z.values.shape, np.nan, dtype=np.float32)
    rows[z.rows(shared)] = other.values[other.rows(shared)]
    return rows
