"""How low the rank of Z is: spectrum, R2 by rank, components.

All of it follows from the moments of Z: the number of examples, the means of the tasks and their
M x M Gram matrix. Those are sums over examples, so they are gathered chunk by chunk, in memory
(`rank_curve`) or from disk (`lethe.streaming`), and N never costs memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

CHUNK = 32_768  # examples at a time; divides the row groups that lethe.matrix.write makes


@dataclass(frozen=True)
class Moments:
    """Sums over the examples that every task knows.

    `count` examples, `dropped` others (a NaN in some task), `means` (M,) of the tasks in nats and
    `scatter` (M, M) = sum over examples of (z - means)(z - means)^T, all float64.
    """

    count: int
    dropped: int
    means: np.ndarray
    scatter: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        """Z Z^T (M, M), uncentred."""
        return self.scatter + self.count * np.outer(self.means, self.means)

    @property
    def column_centred(self) -> np.ndarray:
        """X X^T (M, M) of Z with each example's mean over tasks taken off."""
        spread = self.means - self.means.mean()
        return _off_means(self.scatter) + self.count * np.outer(spread, spread)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of examples (Chan, Golub and LeVeque 1983).

        Nothing cancels when the mean of Z is large beside its spread.
        """
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.means - self.means
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * share)
        dropped = self.dropped + other.dropped
        return Moments(count, dropped, self.means + apart * share, scatter)


def moments(chunks: Iterable[np.ndarray]) -> Moments:
    """Gathers moments of chunks (M, n) of Z in one pass, float64 throughout.

    Raises
    ------
    ValueError
        If there is no chunk.
    """
    total = None
    for chunk in chunks:
        found = moments_of(chunk)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("Z has no examples")
    return total


def moments_of(chunk: np.ndarray) -> Moments:
    """Moments of one chunk (M, n)."""
    z, dropped = np.array(chunk, dtype=np.float64), 0
    means = z.mean(axis=1) if z.size else np.zeros(len(z))
    if not np.isfinite(means).all():
        # A task with a gap has no mean: cells need to be looked at only then.
        known = np.isfinite(z).all(axis=0)
        z, dropped = z[:, known], int((~known).sum())
        means = z.mean(axis=1) if z.size else np.zeros(len(z))
    z -= means[:, None]
    return Moments(z.shape[1], dropped, means, z @ z.T)


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


def slices(values: np.ndarray, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Z in memory (M, N) as chunks (M, n)."""
    for start in range(0, max(values.shape[1], 1), chunk):
        yield values[:, start : start + chunk]


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
        "additive": np.trace(_off_means(z.scatter)),
    }
    comparators = {name: float(1 - rest / total) for name, rest in leaves.items()}
    return RankCurve(1 - left / total, singular, comparators, z.dropped)


def _off_means(gram: np.ndarray) -> np.ndarray:
    """Gram matrix of rows off their mean over tasks, from that of the rows."""
    off = gram - gram.mean(axis=0)
    return off - off.mean(axis=1, keepdims=True)


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
