"""Biases of tasks and examples by alternating least squares."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Biases:
    """Z_ij ~ mean + rows[i] + columns[j]: `rows` (M,), `columns` (N,)."""

    mean: float
    rows: np.ndarray
    columns: np.ndarray

    def fitted(self) -> np.ndarray:
        """The fit as a matrix (M, N)."""
        return self.mean + self.rows[:, None] + self.columns


def biases(
    values: np.ndarray,
    known: np.ndarray,
    ridge_rows: float = 0.0,
    ridge_columns: float = 0.0,
    epochs: int = 20,
) -> Biases:
    """Alternating least squares over the known cells, columns first (as scikit-surprise's ALS).

    Ridges are in units of observations: each bias is its sum of residuals over its number of
    cells plus the ridge. Without NaN and ridge the first epoch is already exact.
    """
    mean = float(values[known].mean())
    z = np.where(known, values - mean, 0.0)
    mask = known.astype(float)
    per_row, per_column = mask.sum(axis=1), mask.sum(axis=0)
    rows = np.zeros(z.shape[0])
    for _ in range(epochs):
        before = rows
        columns = _over(z.sum(axis=0) - rows @ mask, per_column + ridge_columns)
        rows = _over(z.sum(axis=1) - mask @ columns, per_row + ridge_rows)
        if np.abs(rows - before).max() < 1e-12:
            break
    return Biases(mean, rows, columns)


def _over(sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)


def fill(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The matrix with unknown cells at their additive fit."""
    return values if known.all() else np.where(known, values, biases(values, known).fitted())
