"""Noise of each column: the variance that the other training tasks cannot explain there."""

from dataclasses import dataclass

import numpy as np

from lethe.matrix.moments import centre_gram


@dataclass(frozen=True)
class ColumnNoise:
    """Statistics of the Gram matrix that give a column's noise from that column alone.

    `residual` (M, M) turns columns (M, n) into left-out residuals. `pooled` is the mean square of
    these over all columns. `weight` is the sum of the rows' weights, by default their number.
    """

    residual: np.ndarray
    pooled: float
    prior: float = 10.0
    weight: float | None = None

    def variance(self, columns: np.ndarray) -> np.ndarray:
        """Noise variance (n,) of columns (M, n), nats^2.

        It is shrunk towards the mean of all columns, as if `prior` further tasks had that
        variance, because M values determine a variance poorly.
        """
        squares = np.square(self.residual @ columns).sum(axis=0)
        tasks = len(self.residual) if self.weight is None else self.weight
        variance = (squares + self.prior * self.pooled) / (tasks + self.prior)
        return np.maximum(variance, 1e-12 + 1e-6 * self.pooled)


def estimate_column_noise(
    total: np.ndarray, ridge: float = 0.1, prior: float = 10.0
) -> ColumnNoise:
    """Left-out residuals of ridge regression of each centred row X_i on the others.

    With K = X X^T + ridge * trace / M, the residuals of all rows at once are K^-1 X divided by
    the diagonal of K^-1. `total` is the Gram matrix of [Z; 1].
    """
    tasks = len(total) - 1
    centred = centre_gram(total[:-1, :-1])
    size = max(ridge * np.trace(centred) / tasks, 1e-12)
    inverse = np.linalg.inv(centred + size * np.eye(tasks))
    diagonal = np.diag(inverse)
    # K^-1 applied to centred rows; the centring of the rows is moved to the matrix.
    residual = (inverse - inverse.mean(axis=1, keepdims=True)) / diagonal[:, None]
    # Squares of the residuals are the diagonal of K^-1 (K - size) K^-1 over that of K^-1 squared.
    squares = (diagonal - size * np.square(inverse).sum(axis=1)) / np.square(diagonal)
    pooled = max(squares.sum(), 0.0) / (tasks * total[-1, -1])
    return ColumnNoise(residual=residual, pooled=pooled, prior=prior)
