"""Noise of each column: the variance that the other training tasks cannot explain there."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ColumnNoise:
    """Statistics of the Gram matrix that give a column's noise from that column alone.

    `residual` (M, M) turns columns (M, n) into left-out residuals. `pooled` is the mean square of
    these over all columns.
    """

    residual: np.ndarray
    pooled: float
    prior: float = 10.0

    def variance(self, columns: np.ndarray) -> np.ndarray:
        """Noise variance (n,) of columns (M, n), nats^2.

        It is shrunk towards the mean of all columns, as if `prior` further tasks had that
        variance, because M values determine a variance poorly.
        """
        squares = np.square(self.residual @ columns).sum(axis=0)
        tasks = len(self.residual)
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
    centre = np.eye(tasks) - 1 / tasks
    centred = centre @ total[:-1, :-1] @ centre
    size = max(ridge * np.trace(centred) / tasks, 1e-12)
    inverse = np.linalg.inv(centred + size * np.eye(tasks))
    residual = (inverse / np.diag(inverse)[:, None]) @ centre
    squares = ((residual @ total[:-1, :-1]) * residual).sum()
    pooled = max(squares, 0.0) / (tasks * total[-1, -1])
    return ColumnNoise(residual=residual, pooled=pooled, prior=prior)
