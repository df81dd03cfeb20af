"""How low the rank of Z is: spectrum, R2 by rank, components.

All of it follows from the moments of Z: the number of examples, the means of the tasks and their
M x M Gram matrix. Those are sums over examples, so they are gathered chunk by chunk, in memory
(`rank_curve`) or from disk (`lethe.matrix.streams`), and N never costs memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lethe.matrix.moments import Moments, moments, off_means, slices


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

    def records(self, f1: Mapping[int, float] | None = None) -> list[dict]:
        """Lines of rank_curve.csv: predictor, rank, r2, singular_value.

        With `f1`, rank -> F1 of logistic factors of a binary Z, each rank has a line more.
        """
        logistic = [
            {"predictor": "logistic_mf", "rank": rank, "f1": value}
            for rank, value in (f1 or {}).items()
        ]
        lines = [
            {"predictor": name, "rank": 0, "r2": value, "singular_value": None}
            for name, value in self.comparators.items()
        ]
        return (
            lines
            + [
                {"predictor": "svd", "rank": rank, "r2": r2, "singular_value": value}
                for rank, (r2, value) in enumerate(
                    zip(self.r2.tolist(), self.singular_values.tolist(), strict=True), start=1
                )
            ]
            + logistic
        )


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
    return curve(moments(slices(values)), max_rank)


def curve(z: Moments, max_rank: int | None = None) -> RankCurve:
    """The rank curve that belongs to the moments of Z; `rank_curve` says what it holds.

    Singular values are roots of the Gram matrix's eigenvalues: exact to about 1e-8 of the
    largest, R2 to about 1e-12.
    """
    tasks, spread = len(z.means), z.means - z.means.mean()
    between = z.count * np.square(spread).sum()
    total = np.trace(z.scatter) + between
    squares = np.trace(z.gram)
    if not total > 1e-13 * squares:
        raise ValueError(f"Z of {tasks} tasks has no variation in its {z.count} complete columns")
    eigenvalues = np.linalg.eigvalsh(z.gram)[::-1][: min(tasks, z.count)][:max_rank]
    singular = np.sqrt(np.maximum(eigenvalues, 0))
    left = squares - np.cumsum(np.square(singular))
    # What each fit without factors leaves: sums of squares off the means it fits.
    leaves = {
        "column_mean": np.trace(z.column_centred),
        "row_mean": np.trace(z.scatter),
        "additive": np.trace(off_means(z.scatter)),
    }
    comparators = {name: float(1 - rest / total) for name, rest in leaves.items()}
    return RankCurve(1 - left / total, singular, comparators, z.dropped)


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
