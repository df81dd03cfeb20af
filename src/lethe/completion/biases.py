"""Biases of tasks and examples by least squares."""

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg


@dataclass(frozen=True)
class Biases:
    """Z_ij ~ mean + rows[i] + columns[j], with `rows` (M,) and `columns` (N,)."""

    mean: float
    rows: np.ndarray
    columns: np.ndarray

    def to_matrix(self) -> np.ndarray:
        """The fit as a matrix (M, N)."""
        return self.mean + self.rows[:, None] + self.columns


def fit_biases(
    values: np.ndarray,
    observed: np.ndarray,
    ridge_rows: float = 0.0,
    ridge_columns: float = 0.0,
    epochs: int = 20,
) -> Biases:
    """Least squares over the known cells.

    Ridges are in units of observations: each bias is its sum of residuals divided by its number
    of cells plus the ridge. The fit alternates between columns and rows (as scikit-surprise's
    ALS). Without NaN and ridge the first epoch is already exact. If it has not converged after
    `epochs`, as where cells are missing in blocks, the normal equations are solved instead.
    """
    mean = float(values[observed].mean())
    z = np.where(observed, values - mean, 0.0)
    mask = observed.astype(float)
    row_counts = mask.sum(axis=1)
    column_counts = mask.sum(axis=0)
    rows = np.zeros(z.shape[0])
    for _ in range(epochs):
        previous = rows
        columns = _divide(z.sum(axis=0) - rows @ mask, column_counts + ridge_columns)
        rows = _divide(z.sum(axis=1) - mask @ columns, row_counts + ridge_rows)
        if np.abs(rows - previous).max() < 1e-12:
            break
    else:
        rows = _solve_rows(
            z, mask, start=rows, row_weights=row_counts + ridge_rows, column_ridge=ridge_columns
        )
        columns = _divide(z.sum(axis=0) - rows @ mask, column_counts + ridge_columns)
    return Biases(mean=mean, rows=rows, columns=columns)


def _solve_rows(
    z: np.ndarray,
    mask: np.ndarray,
    start: np.ndarray,
    row_weights: np.ndarray,
    column_ridge: float,
) -> np.ndarray:
    """Row biases (M,) that solve the normal equations, from a start (M,) by conjugate gradients.

    Column biases are the means of residuals, so they can be eliminated: with the mask K of known
    cells and the weights w, v of rows and columns, (diag(w) - K diag(1 / v) K^T) r = b. Biases are
    known up to one constant per connected block; the constant of the start is preserved.
    """
    column_weights = mask.sum(axis=0) + column_ridge

    def without_columns(rows: np.ndarray) -> np.ndarray:
        return row_weights * rows - mask @ _divide(rows @ mask, column_weights)

    tasks = len(z)
    system = LinearOperator((tasks, tasks), matvec=without_columns, dtype=np.float64)
    right = z.sum(axis=1) - mask @ _divide(z.sum(axis=0), column_weights)
    rows, _ = cg(system, right, x0=start, rtol=1e-12, maxiter=10 * tasks)
    return rows


def _divide(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)


def fill(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The matrix with its unknown cells replaced by their additive fit."""
    if observed.all():
        return values
    return np.where(observed, values, fit_biases(values, observed).to_matrix())
