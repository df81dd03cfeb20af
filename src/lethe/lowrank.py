"""How low the rank of Z is: spectrum, R2 by rank, components."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankCurve:
    """R2 of Z by predictor.

    `r2` (R,) of the uncentred SVD at ranks 1 to R, `singular_values` (R,), the R2 of three
    comparators without factors, and how many columns were dropped because they hold a NaN.
    """

    r2: np.ndarray
    singular_values: np.ndarray
    comparators: dict[str, float]
    dropped_columns: int

    def records(self) -> list[dict]:
        """Lines of rank_curve.csv: predictor, rank, r2, singular_value."""
        lines = [
            {"predictor": name, "rank": 0, "r2": value, "singular_value": None}
            for name, value in self.comparators.items()
        ]
        return lines + [
            {"predictor": "svd", "rank": rank, "r2": r2, "singular_value": value}
            for rank, (r2, value) in enumerate(
                zip(self.r2.tolist(), self.singular_values.tolist(), strict=True), start=1
            )
        ]


def rank_curve(values: np.ndarray, max_rank: int | None = None) -> RankCurve:
    """R2 at every rank of the uncentred SVD of Z (M, N) (paper, section 3).

    R2 = 1 - mean((Z - Z_r)^2) / mean((Z - mean(Z))^2): the fit is not centred, the denominator
    is. Comparators: column means, row means, and both (additive). Columns with a NaN are dropped
    and counted, never filled.

    Raises
    ------
    ValueError
        If no column without NaN is left, or Z is constant.
    """
    known = np.isfinite(values).all(axis=0)
    z = np.asarray(values[:, known], dtype=np.float64)
    total = np.square(z - z.mean()).sum() if z.size else 0.0
    if total == 0:
        raise ValueError(f"Z {values.shape} has no variation in its {z.shape[1]} complete columns")
    singular = _singular_values(z)[:max_rank]
    left = np.square(z).sum() - np.cumsum(np.square(singular))
    columns, rows = z.mean(axis=0), z.mean(axis=1, keepdims=True)
    fits = {"column_mean": columns, "row_mean": rows, "additive": columns + rows - z.mean()}
    comparators = {name: 1 - np.square(z - fit).sum() / total for name, fit in fits.items()}
    return RankCurve(1 - left / total, singular, comparators, int((~known).sum()))


def _singular_values(z: np.ndarray) -> np.ndarray:
    """Through the (M, M) Gram matrix: exact for M << N at a fraction of the time and memory."""
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def components(values: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Task factors (M, rank), scaled by singular values, and example factors (N, rank).

    Signs are fixed so that each component's task factors sum to a positive number; columns with
    a NaN get NaN factors.
    """
    known = np.isfinite(values).all(axis=0)
    u, s, vt = np.linalg.svd(values[:, known].astype(np.float64), full_matrices=False)
    signs = np.where(u[:, :rank].sum(axis=0) < 0, -1.0, 1.0)
    examples = np.full((values.shape[1], rank), np.nan)
    examples[known] = (vt[:rank].T) * signs
    return u[:, :rank] * s[:rank] * signs, examples
