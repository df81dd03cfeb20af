"""Biases of tasks and examples by alternating least squares."""

from dataclasses import dataclass

import numpy as np


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
    """Alternating least squares over the known cells, columns first (as scikit-surprise's ALS).

    Ridges are in units of observations: each bias is its sum of residuals divided by its number
    of cells plus the ridge. Without NaN and ridge the first epoch is already exact.
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
    return Biases(mean=mean, rows=rows, columns=columns)


def _divide(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)


def fill(values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The matrix with its unknown cells replaced by their additive fit."""
    if observed.all():
        return values
    return np.where(observed, values, fit_biases(values, observed).to_matrix())
