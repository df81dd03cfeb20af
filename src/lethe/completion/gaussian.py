"""Gaussian completion: the new row conditional on all training rows, with noise per column."""

import numpy as np

from lethe.completion.base import Completer
from lethe.completion.biases import fill
from lethe.completion.tuning import Folds

NOISES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Gaussian(Completer):
    """The new row is a Gaussian with the training rows' mean and covariance, plus noise.

    Covariance over examples: X^T X / M of the column-centred training rows X, a common offset,
    and a diagonal that differs by column: what the other training tasks cannot explain there,
    estimated by leave-one-task-out. Conditioning on the probes weighs a noisy example less.
    One factor on the noise is chosen by leave-one-task-out for each number of probes unless
    given. Cost O(M^2 N), without any (N, N) matrix.
    """

    def __init__(self, noise: float | None = None):
        self.noise = noise

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.conditional = Conditional(fill(values, known))
        self._folds = Folds(values, known)
        self._chosen: dict[int, float] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        noise = self.noise if self.noise is not None else self._tuned(len(index))
        return self.conditional.complete(index, values, [noise])[0]

    def _tuned(self, probes: int) -> float:
        if probes not in self._chosen:
            self._chosen[probes] = self._folds.choose(probes, NOISES, _left_out, default=1.0)
        return self._chosen[probes]


def _left_out(train, row, probes, noises):
    return Conditional(train).complete(probes, row[probes], noises)


class Conditional:
    """Mean (N,), features (N, M + 1) whose outer product is the covariance, noise variance (N,)."""

    def __init__(self, rows: np.ndarray):
        self.means = rows.mean(axis=0)
        centred = rows - self.means
        offset = max(float(rows.mean(axis=1).std()), 1e-6)
        scaled = centred.T / np.sqrt(len(rows))
        self.features = np.hstack([np.full((len(scaled), 1), offset), scaled])
        self.noise = _column_noise(centred)

    def complete(self, index: np.ndarray, values: np.ndarray, noises) -> list[np.ndarray]:
        """A prediction (N,) for each factor on the noise."""
        probed, target = self.features[index], values - self.means[index]
        weighted = probed / self.noise[index, None]
        precision, projected = probed.T @ weighted, weighted.T @ target
        identity = np.eye(len(precision))
        return [
            self.means + self.features @ np.linalg.solve(precision / f + identity, projected / f)
            for f in noises
        ]


def _column_noise(centred: np.ndarray) -> np.ndarray:
    """Variance (N,) of what ridge regression of each row on the others leaves.

    With K = X X^T + ridge I, the left-out residuals of all rows at once are K^-1 X divided by
    the diagonal of K^-1. Columns are shrunk towards their mean: M values say little about a
    variance.
    """
    tasks = len(centred)
    gram = centred @ centred.T
    ridge = 0.1 * np.trace(gram) / tasks
    inverse = np.linalg.inv(gram + max(ridge, 1e-12) * np.eye(tasks))
    squares = np.square((inverse @ centred) / np.diag(inverse)[:, None])
    prior = 5.0
    pooled = squares.mean()
    variance = (squares.sum(axis=0) + prior * pooled) / (tasks + prior)
    return np.maximum(variance, 1e-12 + 1e-6 * pooled)
