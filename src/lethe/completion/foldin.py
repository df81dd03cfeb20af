"""Linear fold-in: a new row as a combination of training rows, by ridge regression on its probes.

Additive, affine, matrix factorisation and the Gaussian conditional are all of this kind. They
differ in the prior of the combination and in the noise. Two facts make them fast:

- a prediction is `weights @ [Z; 1]`, so it is local to a column once the weights (M + 1,) are
  known, and Z can be streamed;
- the squared error of such a prediction of a row of Z, over all columns, is a quadratic form of
  the (M + 1, M + 1) Gram matrix of [Z; 1], so choosing hyper-parameters costs the same at any N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.completer import Completer

# Least number of left-out predictions, draws of probes times tasks, that a candidate is judged by.
LEFT_OUT = 60
# With more training tasks than MANY_TASKS, settings are chosen on JUDGED_TASKS of them, drawn at
# random: the time of leaving every task out grows with the fourth power of their number.
MANY_TASKS = 128
JUDGED_TASKS = 64


@dataclass(frozen=True)
class Prior:
    """A new row before any probe: a mean and directions of unit variance.

    Both are combinations of the M training rows and a row of ones: `mean` (M + 1,), `basis`
    (q, M + 1).
    """

    mean: np.ndarray
    basis: np.ndarray

    def variance(self, columns: np.ndarray) -> np.ndarray:
        """Prior variance (n,) at columns (M + 1, n), without noise."""
        return np.square(self.basis @ columns).sum(axis=0)


def with_ones(rows: np.ndarray) -> np.ndarray:
    """[Z; 1] (M + 1, n) of columns (M, n)."""
    return np.vstack([rows, np.ones((1, rows.shape[1]))])


def gram(rows: np.ndarray) -> np.ndarray:
    """[Z; 1] [Z; 1]^T (M + 1, M + 1): a sum over columns, so those of chunks of Z add up."""
    rows = np.asarray(rows, dtype=np.float64)
    tasks, columns = rows.shape
    total = np.empty((tasks + 1, tasks + 1))
    # Sums of rows instead of a row of ones, because appending that would copy the rows.
    total[:-1, :-1] = rows @ rows.T
    total[:-1, -1] = total[-1, :-1] = rows.sum(axis=1)
    total[-1, -1] = columns
    return total


def centring(tasks: int) -> np.ndarray:
    """(M, M + 1): the combinations of [Z; 1] that are the rows minus their mean, over sqrt(M).

    Their outer product is the covariance of the training rows.
    """
    combinations = np.zeros((tasks, tasks + 1))
    combinations[:, :tasks] = (np.eye(tasks) - 1 / tasks) / np.sqrt(tasks)
    return combinations


def mean_row(tasks: int) -> np.ndarray:
    """(M + 1,): the combination of [Z; 1] that is the mean of the training rows."""
    return np.append(np.full(tasks, 1 / tasks), 0.0)


def offset_spread(total: np.ndarray) -> float:
    """Standard deviation of the training tasks' mean forgetting, from the Gram matrix."""
    return max(float((total[:-1, -1] / total[-1, -1]).std()), 1e-6)


def scale_spread(total: np.ndarray) -> float:
    """Standard deviation, over training tasks, of the factor that maps the mean row to each."""
    mean = mean_row(len(total) - 1)
    size = mean @ total @ mean
    return max(float((total[:-1] @ mean / size).std()), 1e-6) if size > 0 else 1e-6


class Solver:
    """Posterior of the combination given the probes, for any number of noise factors.

    With A = basis @ [Z; 1] d^-1/2 at the probed columns and noise variances f * d, one
    decomposition of A^T A = V S V^T gives the solution for every f.

    Parameters
    ----------
    probed
        Columns (M + 1, k) of [Z; 1].
    noise
        Variances d (k,).
    """

    def __init__(self, prior: Prior, probed: np.ndarray, noise: np.ndarray):
        self.prior = prior
        self.probed = probed
        self.scale = 1 / np.sqrt(noise)
        scaled = (prior.basis @ probed) * self.scale
        if scaled.shape[1] <= scaled.shape[0]:
            squares, self.v = np.linalg.eigh(scaled.T @ scaled)
            self.squares = np.maximum(squares, 0.0)
            self.directions = scaled @ self.v
        else:
            u, s, vt = np.linalg.svd(scaled, full_matrices=False)
            self.squares = np.square(s)
            self.v = vt.T
            self.directions = u * s

    def weights(self, values: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """Weights (F, R, M + 1) of rows and ones from probe values (R, k), for each factor."""
        target = (values - self.prior.mean @ self.probed) * self.scale
        solved = (target @ self.v) / (self.squares + np.asarray(factors)[:, None, None])
        return self.prior.mean + solved @ (self.directions.T @ self.prior.basis)

    def variance(
        self, columns: np.ndarray, factor: float, prior_variance: np.ndarray | None = None
    ) -> np.ndarray:
        """Posterior variance (n,) of the combination at columns (M + 1, n), without noise.

        `prior_variance` is `self.prior.variance(columns)`, if you have it already.
        """
        if prior_variance is None:
            prior_variance = self.prior.variance(columns)
        # The small factor first: k directions instead of M + 2.
        explained = np.square((self.directions.T @ self.prior.basis) @ columns)
        remaining = prior_variance - (1 / (self.squares + factor)) @ explained
        return np.maximum(remaining, 0.0)

    def left_out_residuals(self, values: np.ndarray, factor: float) -> np.ndarray:
        """Residuals (R, k) of each probe predicted from the others, by its standard deviation."""
        target = (values - self.prior.mean @ self.probed) * self.scale
        # Inverse covariance of the scaled probes, (f I + V S V^T)^-1, and its diagonal.
        explained = self.squares / (self.squares + factor)
        solved = (target - (target @ self.v * explained) @ self.v.T) / factor
        diagonal = (1 - np.square(self.v) @ explained) / factor
        return solved / np.sqrt(np.maximum(diagonal, 1e-300))


class FoldInModel:
    """The statistics of training rows that a fold-in method needs: M x M sums, a few columns.

    Nothing in it is as long as a row, so Z can be streamed: one pass adds up `gram` and draws the
    sample, `weights` looks at the probed columns, and a second pass predicts any columns (M, n)
    as `weights @ with_ones(columns)`.

    Parameters
    ----------
    method
        The method, with its candidates.
    total
        Gram matrix (M + 1, M + 1) of [Z; 1] over all columns.
    columns
        Columns (M, n) of Z at which a candidate is judged: all, or a random part. Columns that no
        row knows belong neither in here nor in `total`.
    observed
        Mask (M, n) of the cells of `columns` that were measured, not filled in; by default all.
    """

    def __init__(
        self,
        method: "FoldIn",
        total: np.ndarray,
        columns: np.ndarray,
        seed: int = 0,
        observed: np.ndarray | None = None,
    ):
        self.method = method
        self.total = total
        self.sample = with_ones(columns)
        self.observed = np.ones(columns.shape, dtype=bool) if observed is None else observed
        self.seed = seed
        self.parts = method.parts(total)
        self._parts_without_row: dict[int, Any] = {}
        self._choices: dict[int, Any] = {}

    @property
    def tasks(self) -> int:
        """M, the number of training rows."""
        return len(self.sample) - 1

    @cached_property
    def judge(self) -> "FoldInModel":
        """The model on which settings are chosen: this one, or one of `JUDGED_TASKS` rows."""
        if self.tasks <= MANY_TASKS:
            return self
        rng = np.random.default_rng([self.seed, 53])
        rows = np.sort(rng.choice(self.tasks, JUDGED_TASKS, replace=False))
        with_last = np.append(rows, self.tasks)
        return FoldInModel(
            self.method,
            total=self.total[np.ix_(with_last, with_last)],
            columns=self.sample[rows],
            seed=self.seed,
            observed=self.observed[rows],
        )

    def weights(self, probed: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Weights (R, M + 1) of rows and ones from probe values (R, k) at columns (M, k)."""
        candidate = self.choose(probed.shape[1])
        columns = with_ones(probed)
        weights = self.method.weights(
            self.parts, probed=columns, values=values, candidates=[candidate]
        )[0]
        return self.method.refine(
            self, weights=weights, probed=columns, values=values, candidate=candidate
        )

    def choose(self, probes: int) -> Any:
        """The candidate of least squared error over unprobed cells of left-out training rows.

        With fewer than three rows, or nothing to probe, it is the method's default.
        """
        candidates = self.method.candidates()
        if len(candidates) == 1:
            return candidates[0]
        if self.tasks < 3 or probes == 0 or self.sample.shape[1] < 2:
            return self.method.default
        if self.judge is not self:
            return self.judge.choose(probes)
        if probes not in self._choices:
            errors = 0
            draws = -(-LEFT_OUT // self.tasks)
            for index in self.draw_probes(probes, draws):
                for row in range(self.tasks):
                    errors = errors + self._squared_errors(row, index, candidates)
            self._choices[probes] = candidates[int(np.argmin(errors))]
        return self._choices[probes]

    def draw_probes(self, count: int, draws: int) -> list[np.ndarray]:
        """Sorted columns of the sample, per draw; at least one column stays unprobed."""
        return draw_columns(self.sample.shape[1], count=count, draws=draws, seed=self.seed)

    def without_row(self, row: int) -> tuple[Any, np.ndarray]:
        """The method's parts if a row did not exist, and the numbers of the remaining rows."""
        remaining = np.delete(np.arange(len(self.total)), row)
        if row not in self._parts_without_row:
            total = self.total[np.ix_(remaining, remaining)]
            self._parts_without_row[row] = self.method.parts(total)
        return self._parts_without_row[row], remaining

    def _squared_errors(self, row: int, index: np.ndarray, candidates: Sequence) -> np.ndarray:
        """Sum (C,) of squared errors over unprobed columns, from the Gram matrix alone."""
        parts, _ = self.without_row(row)
        return squared_errors(
            self.method,
            parts=parts,
            total=self.total,
            probed=self.sample[:, index],
            row=row,
            candidates=candidates,
        )


def draw_columns(columns: int, count: int, draws: int, seed: int) -> list[np.ndarray]:
    """Sorted numbers of `count` of the columns, per draw; at least one column is never in it."""
    rng = np.random.default_rng([seed, count, 13])
    count = min(count, columns - 1)
    return [np.sort(rng.permutation(columns)[:count]) for _ in range(draws)]


def squared_errors(
    method: "FoldIn",
    parts: Any,
    total: np.ndarray,
    probed: np.ndarray,
    row: int,
    candidates: Sequence,
) -> np.ndarray:
    """Sum (C,) of squared errors over unprobed columns, from the Gram matrix alone.

    Parameters
    ----------
    parts
        The method's parts without the row that is predicted.
    total
        Gram matrix (M + 1, M + 1) of [Z; 1] with the row.
    probed
        Columns (M + 1, k) of [Z; 1] at the probes.
    row
        Number of the row that is predicted from the others.
    """
    remaining = np.delete(np.arange(len(total)), row)
    weights = method.weights(
        parts,
        probed=probed[remaining],
        values=probed[row][None],
        candidates=candidates,
    )
    # Predicted minus measured row, as a combination of all rows.
    error = np.zeros((len(candidates), len(total)))
    error[:, row] = -1
    error[:, remaining] = weights[:, 0]
    everywhere = ((error @ total) * error).sum(axis=1)
    at_probes = np.square(error @ probed).sum(axis=1)
    return np.maximum(everywhere - at_probes, 0.0)


class FoldIn(Completer):
    """A linear fold-in method: `parts` from the Gram matrix, `weights` from those and probes.

    Attributes
    ----------
    model_ : FoldInModel
        Statistics of the training rows.
    rows_ : ndarray of shape (M, N)
        Training rows, unknown cells filled in.
    sampled_ : ndarray of int
        Numbers of the columns of the model's sample.
    """

    default: Any = None

    def candidates(self) -> Sequence:
        """Settings to choose from by leave-one-task-out; one, if you set it."""
        raise NotImplementedError

    def parts(self, total: np.ndarray) -> Any:
        """Everything that is computed once, from the Gram matrix (M + 1, M + 1)."""
        raise NotImplementedError

    def weights(
        self, parts: Any, probed: np.ndarray, values: np.ndarray, candidates: Sequence
    ) -> np.ndarray:
        """Weights (C, R, M + 1) from values (R, k) at columns (M + 1, k) of [Z; 1]."""
        raise NotImplementedError

    def refine(
        self,
        model: FoldInModel,
        weights: np.ndarray,
        probed: np.ndarray,
        values: np.ndarray,
        candidate: Any,
    ) -> np.ndarray:
        """Final weights (R, M + 1) from those of the chosen candidate; arguments as of `weights`.

        Methods that solve once more override it. It takes no part in the choice of a candidate.
        """
        return weights

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        self._learn(fill(values, observed), observed)

    def _learn(self, rows: np.ndarray, observed: np.ndarray) -> None:
        """Learns from rows (M, N) whose cells that are not in `observed` were filled in."""
        self.rows_ = rows
        self._observed = observed
        # Columns that no row knows are filled in, and would make rows seem to explain each other.
        measured = observed.any(axis=0)
        self.sampled_ = sample_columns(np.flatnonzero(measured)[None])[0]
        if not measured.all():
            rows = rows[:, measured]
            observed = observed[:, measured]
        self.model_ = FoldInModel(
            self,
            total=gram(rows),
            columns=sample_columns(rows),
            observed=sample_columns(observed),
        )

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        weights = self.model_.weights(self.rows_[:, index], values)
        # Appending the row of ones would copy all rows.
        return weights[:, :-1] @ self.rows_ + weights[:, -1:]


def sample_columns(rows: np.ndarray, columns: int = 2000, seed: int = 0) -> np.ndarray:
    """At most this many columns (M, n) of the rows, drawn once to choose a few settings on."""
    count = rows.shape[1]
    if count <= columns:
        return rows
    index = np.random.default_rng([seed, 13]).choice(count, columns, replace=False)
    return rows[:, np.sort(index)]
