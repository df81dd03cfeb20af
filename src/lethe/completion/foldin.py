"""Linear fold-in: a new row as a combination of training rows, by ridge regression on its probes.

Additive, affine, matrix factorisation and the Gaussian conditional are all of this kind; they
differ in the prior on the combination and in the noise. Two facts carry everything else:

- a prediction is `weights @ [Z; 1]`, so it is local to a column once the weights (M + 1,) are
  known, and Z can be streamed;
- the squared error of such a prediction of a row of Z, over all columns, is a quadratic form of
  the (M + 1, M + 1) Gram matrix of [Z; 1], so choosing hyper-parameters costs the same at any N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.completer import Completer

# How many left-out predictions a candidate is chosen by, at least: draws of probes times tasks.
LEFT_OUT = 60


@dataclass(frozen=True)
class Prior:
    """What a new row is before any probe: a mean and directions of unit variance.

    Both are combinations of the M training rows and a row of ones: `mean` (M + 1,), `basis`
    (q, M + 1).
    """

    mean: np.ndarray
    basis: np.ndarray


def with_ones(rows: np.ndarray) -> np.ndarray:
    """[Z; 1] (M + 1, n) of columns (M, n)."""
    return np.vstack([rows, np.ones((1, rows.shape[1]))])


def gram(rows: np.ndarray) -> np.ndarray:
    """[Z; 1] [Z; 1]^T (M + 1, M + 1): a sum over columns, so that chunks of Z can be added up."""
    stacked = with_ones(np.asarray(rows, dtype=np.float64))
    return stacked @ stacked.T


def centring(tasks: int) -> np.ndarray:
    """(M, M + 1): the combinations of [Z; 1] that are the rows less their mean, by sqrt(M).

    Their outer product is the covariance of the training rows.
    """
    combinations = np.zeros((tasks, tasks + 1))
    combinations[:, :tasks] = (np.eye(tasks) - 1 / tasks) / np.sqrt(tasks)
    return combinations


def mean_row(tasks: int) -> np.ndarray:
    """(M + 1,): the combination of [Z; 1] that is the mean of the training rows."""
    return np.append(np.full(tasks, 1 / tasks), 0.0)


def offset_spread(total: np.ndarray) -> float:
    """Standard deviation, over training tasks, of their mean forgetting; from the Gram matrix."""
    return max(float((total[:-1, -1] / total[-1, -1]).std()), 1e-6)


def scale_spread(total: np.ndarray) -> float:
    """Standard deviation, over training tasks, of the factor that takes the mean row to each."""
    mean = mean_row(len(total) - 1)
    size = mean @ total @ mean
    return max(float((total[:-1] @ mean / size).std()), 1e-6) if size > 0 else 1e-6


class Solver:
    """Posterior of the combination given the probes, for any number of noise factors.

    With A = basis @ [Z; 1] d^-1/2 at the probed columns and noise variances f * d, one
    decomposition of A^T A = V S V^T gives the solution for every f.
    """

    def __init__(self, prior: Prior, probed: np.ndarray, noise: np.ndarray):
        self.prior, self.probed, self.scale = prior, probed, 1 / np.sqrt(noise)
        scaled = (prior.basis @ probed) * self.scale
        if scaled.shape[1] <= scaled.shape[0]:
            squares, self.v = np.linalg.eigh(scaled.T @ scaled)
            self.squares, self.directions = np.maximum(squares, 0.0), scaled @ self.v
        else:
            u, s, vt = np.linalg.svd(scaled, full_matrices=False)
            self.squares, self.v, self.directions = np.square(s), vt.T, u * s

    def weights(self, values: np.ndarray, factors: Sequence[float]) -> np.ndarray:
        """Weights (F, R, M + 1) of rows and ones from probe values (R, k), for each factor."""
        target = (values - self.prior.mean @ self.probed) * self.scale
        solved = (target @ self.v) / (self.squares + np.asarray(factors)[:, None, None])
        return self.prior.mean + solved @ (self.directions.T @ self.prior.basis)

    def variance(self, columns: np.ndarray, factor: float) -> np.ndarray:
        """Posterior variance (n,) of the combination at columns (M + 1, n), noise left out."""
        features = self.prior.basis @ columns
        explained = np.square(self.directions.T @ features)
        left = np.square(features).sum(axis=0) - (1 / (self.squares + factor)) @ explained
        return np.maximum(left, 0.0)

    def left_out(self, values: np.ndarray, factor: float) -> np.ndarray:
        """Residuals (R, k) of each probe predicted from the others, by its standard deviation."""
        target = (values - self.prior.mean @ self.probed) * self.scale
        # Inverse covariance of the scaled probes, (f I + V S V^T)^-1, and its diagonal.
        gained = self.squares / (self.squares + factor)
        solved = (target - (target @ self.v * gained) @ self.v.T) / factor
        diagonal = (1 - np.square(self.v) @ gained) / factor
        return solved / np.sqrt(np.maximum(diagonal, 1e-300))


class Model:
    """What a fold-in method needs of the training rows: M x M statistics, a sample of columns.

    Nothing here is as long as a row, so Z can be streamed: one pass adds up `gram` and draws the
    sample, `weights` looks at the probed columns, and a second pass predicts any columns (M, n)
    as `weights @ with_ones(columns)`.

    Parameters
    ----------
    method
        The method, with its candidates.
    total
        Gram matrix (M + 1, M + 1) of [Z; 1] over all columns.
    sample
        Columns (M, n) of Z that probes are drawn from when a candidate is chosen: all, or a
        random part. Columns that no row knows belong neither here nor into `total`.
    known
        Mask (M, n) of the sample's cells that were measured, not filled in; none: all.
    """

    def __init__(
        self,
        method: "FoldIn",
        total: np.ndarray,
        sample: np.ndarray,
        seed: int = 0,
        known: np.ndarray | None = None,
    ):
        self.method, self.total, self.sample = method, total, with_ones(sample)
        self.known = np.ones(sample.shape, dtype=bool) if known is None else known
        self.seed = seed
        self.parts = method.parts(total)
        self._without: dict[int, Any] = {}
        self._chosen: dict[int, Any] = {}

    def weights(self, probed: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Weights (R, M + 1) of rows and ones from probe values (R, k) at columns (M, k)."""
        chosen = self.choice(probed.shape[1])
        return self.method.weights(self.parts, with_ones(probed), values, [chosen])[0]

    def choice(self, probes: int) -> Any:
        """The candidate of least squared error over unprobed cells of left-out training rows.

        Under three rows, or with nothing to probe, the method's default.
        """
        candidates = self.method.candidates()
        if len(candidates) == 1:
            return candidates[0]
        if self.tasks < 3 or probes == 0 or self.sample.shape[1] < 2:
            return self.method.default
        if probes not in self._chosen:
            errors = sum(
                self._errors(row, index, candidates)
                for index in self.probes(probes, -(-LEFT_OUT // self.tasks))
                for row in range(self.tasks)
            )
            self._chosen[probes] = candidates[int(np.argmin(errors))]
        return self._chosen[probes]

    @property
    def tasks(self) -> int:
        """M, how many rows can be left out."""
        return len(self.sample) - 1

    def probes(self, count: int, draws: int) -> list[np.ndarray]:
        """For each draw sorted places in the sample; one column at least stays unprobed."""
        rng = np.random.default_rng([self.seed, count, 13])
        columns = self.sample.shape[1]
        count = min(count, columns - 1)
        return [np.sort(rng.permutation(columns)[:count]) for _ in range(draws)]

    def without(self, row: int) -> tuple[Any, np.ndarray]:
        """The method's parts as if a row were not there, and the numbers of those it knows."""
        kept = np.delete(np.arange(len(self.total)), row)
        if row not in self._without:
            self._without[row] = self.method.parts(self.total[np.ix_(kept, kept)])
        return self._without[row], kept

    def _errors(self, row: int, index: np.ndarray, candidates: Sequence) -> np.ndarray:
        parts, kept = self.without(row)
        probed = self.sample[:, index]
        missed = np.zeros((len(candidates), len(self.total)))
        missed[:, row] = -1
        missed[:, kept] = self.method.weights(parts, probed[kept], probed[row][None], candidates)[
            :, 0
        ]
        everywhere = ((missed @ self.total) * missed).sum(axis=1)
        return np.maximum(everywhere - np.square(missed @ probed).sum(axis=1), 0.0)


class FoldIn(Completer):
    """A linear fold-in method: `parts` from the Gram matrix, `weights` from those and probes."""

    default: Any = None

    def candidates(self) -> Sequence:
        """Settings to choose from by leave-one-task-out; one, if it is given."""
        raise NotImplementedError

    def parts(self, total: np.ndarray) -> Any:
        """What is made of the Gram matrix (M + 1, M + 1) once."""
        raise NotImplementedError

    def weights(
        self, parts: Any, probed: np.ndarray, values: np.ndarray, candidates: Sequence
    ) -> np.ndarray:
        """Weights (C, R, M + 1) from values (R, k) at columns (M + 1, k) of [Z; 1]."""
        raise NotImplementedError

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.rows = fill(values, known)
        # What no training row knows is filled in: there, rows would seem to explain each other.
        seen = known.any(axis=0)
        total, drawn = gram(self.rows[:, seen]), sample(self.rows[:, seen])
        self.model = Model(self, total, drawn, known=sample(known[:, seen]))

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.model.weights(self.rows[:, index], values) @ with_ones(self.rows)


def sample(rows: np.ndarray, columns: int = 2000, seed: int = 0) -> np.ndarray:
    """At most so many columns (M, n) of the rows, drawn once: enough to choose a few settings."""
    count = rows.shape[1]
    if count <= columns:
        return rows
    drawn = np.random.default_rng([seed, 13]).choice(count, columns, replace=False)
    return rows[:, np.sort(drawn)]
