"""How low the rank of Z is: spectrum, R2 by rank, components.

All of it follows from the moments of Z: the number of examples, the means of the tasks and their
M x M Gram matrix. Those are sums over examples, so they are added up chunk by chunk, in memory
(`rank_curve`) or from disk (`lethe.matrix.streams`), and memory does not grow with N.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lethe.matrix.moments import Moments, centre_gram, column_slices, compute_moments


@dataclass(frozen=True)
class RankCurve:
    """R2 of Z by predictor.

    `r2` (R,) of the uncentred SVD at ranks 1 to R, `singular_values` (R,), the R2 of three
    comparators without factors, and the number of columns that were dropped because they hold a
    NaN. `tasks` is the number of tasks, without `dropped_tasks`, which were left out because no
    column is complete with them.
    """

    r2: np.ndarray
    singular_values: np.ndarray
    comparators: dict[str, float]
    dropped_columns: int
    tasks: int
    dropped_tasks: Sequence[str] = ()

    def records(self, f1: Mapping[int, float] | None = None) -> list[dict]:
        """Lines of rank_curve.csv: predictor, rank, r2, singular_value, tasks.

        With `f1`, rank -> F1 of logistic factors of a binary Z, each rank has one more line.
        """
        lines = []
        for name, r2 in self.comparators.items():
            lines.append({"predictor": name, "rank": 0, "r2": r2, "singular_value": None})
        pairs = zip(self.r2.tolist(), self.singular_values.tolist(), strict=True)
        for rank, (r2, value) in enumerate(pairs, start=1):
            lines.append({"predictor": "svd", "rank": rank, "r2": r2, "singular_value": value})
        for line in lines:
            line["tasks"] = self.tasks
        for rank, value in (f1 or {}).items():
            lines.append({"predictor": "logistic_mf", "rank": rank, "f1": value})
        return lines


def rank_curve(values: np.ndarray, max_rank: int | None = None) -> RankCurve:
    """R2 at every rank of the uncentred SVD of Z (M, N) (paper, section 3).

    R2 = 1 - mean((Z - Z_r)^2) / mean((Z - mean(Z))^2): the fit is not centred, the denominator
    is. Comparators: column means, row means, and both (additive). Columns with a NaN are dropped
    and counted, never filled.

    Raises
    ------
    ValueError
        If no column without NaN remains, or Z is constant.
    """
    return curve_of_moments(compute_moments(column_slices(values)), max_rank)


def curve_of_moments(z: Moments, max_rank: int | None = None) -> RankCurve:
    """The rank curve, as described in `rank_curve`, from the moments of Z.

    Singular values are roots of the Gram matrix's eigenvalues, exact to about 1e-8 of the
    largest, R2 to about 1e-12.
    """
    tasks = len(z.means)
    spread = z.means - z.means.mean()
    between = z.count * np.square(spread).sum()
    total = np.trace(z.scatter) + between
    squares = np.trace(z.gram)
    if not total > 1e-13 * squares:
        raise ValueError(f"Z of {tasks} tasks has no variation in its {z.count} complete columns")
    eigenvalues = np.linalg.eigvalsh(z.gram)[::-1][: min(tasks, z.count)][:max_rank]
    singular = np.sqrt(np.maximum(eigenvalues, 0))
    residual = squares - np.cumsum(np.square(singular))
    # Sums of squared residuals of the fits without factors.
    residual_without_factors = {
        "column_mean": np.trace(z.column_centred),
        "row_mean": np.trace(z.scatter),
        "additive": np.trace(centre_gram(z.scatter)),
    }
    comparators = {}
    for name, rest in residual_without_factors.items():
        comparators[name] = float(1 - rest / total)
    return RankCurve(
        r2=1 - residual / total,
        singular_values=singular,
        comparators=comparators,
        dropped_columns=z.dropped,
        tasks=tasks,
    )


def components(values: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Task factors (M, rank), scaled by singular values, and example factors (N, rank).

    Signs are chosen so that each component's task factors sum to a positive number. Columns with
    a NaN get NaN factors.
    """
    complete = np.isfinite(values).all(axis=0)
    u, s, vt = np.linalg.svd(values[:, complete].astype(np.float64), full_matrices=False)
    signs = np.where(u[:, :rank].sum(axis=0) < 0, -1.0, 1.0)
    examples = np.full((values.shape[1], rank), np.nan)
    examples[complete] = (vt[:rank].T) * signs
    return u[:, :rank] * s[:rank] * signs, examples
