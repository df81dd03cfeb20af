"""What of Z is noise: sigma of training and of measuring, and the rank that stands above it.

Two questions, two kinds of null. Would another training seed give the same component? Singular
values are compared with those of noise alone, of the size that repeats were measured to have. Do
tasks share which examples they forget? Singular values are compared with those of Z with each
row shuffled by itself, which keeps every row's values and breaks every association.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 50
LEVEL = 0.95


def variance(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Variance (N,) per column within groups of repeats (n, N), pooled over groups.

    Unbiased: squares off each group's mean over the sum of n - 1. NaN where no group has two
    known values.
    """
    squares, freedom = 0.0, 0
    for group in groups:
        known = np.isfinite(group)
        counts = known.sum(axis=0)
        values = np.where(known, group, 0.0)
        means = values.sum(axis=0) / np.maximum(counts, 1)
        squares = squares + np.where(known, np.square(group - means), 0.0).sum(axis=0)
        freedom = freedom + np.maximum(counts - 1, 0)
    return np.divide(squares, freedom, out=np.full(np.shape(squares), np.nan), where=freedom > 0)


def contrasts(group: np.ndarray) -> np.ndarray:
    """Draws of the noise (n - 1, N) out of n repeats (n, N): orthonormal contrasts (Helmert).

    Each has the covariance over columns of one repeat's noise, and what the repeats share is
    gone.
    """
    count = len(group)
    weights = np.zeros((count - 1, count))
    for row in range(1, count):
        weights[row - 1, :row], weights[row - 1, row] = 1.0, -row
        weights[row - 1] /= np.sqrt(row * (row + 1))
    return weights @ group


def rank_above_noise(
    z: np.ndarray, noise: Callable[[np.random.Generator], np.ndarray], seed: int = 0
) -> tuple[int, float]:
    """Components of Z (M, N) above noise, and the singular value that they are above.

    The limit is the 95 percent quantile of the largest singular value of noise matrices. A
    singular value of Z above it cannot come from a signal of lower rank plus such noise (Weyl),
    so that the rank is a lower bound of the signal's.

    Parameters
    ----------
    noise
        Draws the Gram matrix (M, M) of one noise matrix.
    """
    rng = np.random.default_rng([seed, 23])
    largest = [_singular(noise(rng))[0] for _ in range(DRAWS)]
    limit = float(np.quantile(largest, LEVEL))
    return int((_singular(z @ z.T) > limit).sum()), limit


def independent(deviations: np.ndarray, tasks: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Noise of independent cells with a standard deviation (N,) per column."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        cells = rng.normal(size=(tasks, len(deviations))) * deviations
        return cells @ cells.T

    return draw


def correlated(draws: np.ndarray, tasks: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Noise whose rows vary together over columns as the measured draws (D, N) of it do.

    A training seed moves many examples at once, so that its noise is itself of low rank and has
    larger singular values than independent cells of the same size.
    """
    gram = draws @ draws.T / len(draws)

    def draw(rng: np.random.Generator) -> np.ndarray:
        mixed = rng.normal(size=(tasks, len(gram)))
        return mixed @ gram @ mixed.T

    return draw


def rank_above_shuffled(z: np.ndarray, additive: bool, seed: int = 0) -> int:
    """Components of Z (M, N) above those of Z with each row shuffled by itself.

    Parallel analysis with deflation (Dobriban and Owen 2019): the largest singular value against
    the 95 percent quantile of those of shuffled matrices; if it is above, the component is taken
    off and what is left is looked at in the same way. Whatever was taken off is taken off the
    shuffled rows as well, which get the sizes first that independent rows had before. Task means
    come off first, because shuffling cannot break them.

    With `additive`, example means come off as well, before and after shuffling: what is left is
    association beyond 'some examples are forgotten by every task'. Without, those means are
    themselves an association, and the first component is above for any Z that has them.
    """
    rng = np.random.default_rng([seed, 29])
    left, count = np.asarray(z, dtype=np.float64), len(z)
    keep = np.eye(count) - additive / count
    left = keep @ (left - left.mean(axis=1, keepdims=True))
    least = 1e-7 * _singular(left @ left.T)[0]
    # The last dimension is as large shuffled as not.
    testable = max(count - additive - 1, 0)
    for rank in range(testable):
        eigenvalues, tasks = np.linalg.eigh(left @ left.T)
        if np.sqrt(max(eigenvalues[-1], 0)) <= max(least, _shuffled_limit(left, keep, rng)):
            return rank
        top = tasks[:, -1:]
        left, keep = left - top @ (top.T @ left), keep - top @ top.T
    return testable


def _shuffled_limit(left: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> float:
    """95 percent quantile of the largest singular value, shuffled and of the same sum of squares.

    Parameters
    ----------
    keep
        Projection (M, M) that has taken off what is not in `left` (M, N) any more.
    """
    squares = np.square(left).sum(axis=1)
    scale = np.sqrt(_before(squares, keep) / np.maximum(squares, 1e-300))[:, None]
    largest = []
    for _ in range(DRAWS):
        broken = keep @ (scale * rng.permuted(left, axis=1))
        gram = broken @ broken.T
        largest.append(_singular(gram)[0] * np.sqrt(squares.sum() / max(np.trace(gram), 1e-300)))
    return float(np.quantile(largest, LEVEL))


def _before(squares: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Sums of squares (M,) of independent rows that a projection P leaves with these.

    Row i is left with sum_j P_ij^2 s_j: rows come closer in size. Shuffled rows are projected a
    second time and, not enlarged first, would be closer still, with too small a largest singular
    value where tasks differ in spread.
    """
    return np.maximum(np.linalg.lstsq(np.square(keep), squares, rcond=1e-6)[0], 0)


def _singular(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def noise_floor(
    z: np.ndarray,
    trainings: Mapping[str, np.ndarray],
    measurements: Sequence[np.ndarray],
    seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Sizes of the noise in Z (M, N) and the rank above it.

    Parameters
    ----------
    trainings
        task -> forgetting (repeats, N) of trainings that differ in their seed only.
    measurements
        For each of some trainings its forgetting (repeats, N), scored in other batches each time.

    Returns
    -------
    What noise.json holds: sigma in nats per cell (root of the mean variance over cells), by
    task and over columns; the share of Z's variance that is noise, hence the R2 that no
    prediction of another training can pass; ranks above the nulls. Then sigma (N,) per column of
    the training seed and of the engine (NaN: not measured).
    """
    training, engine = variance(list(trainings.values())), variance(measurements)
    engine = np.broadcast_to(engine, training.shape) if measurements else training * np.nan
    drawn = np.concatenate([contrasts(group) for group in trainings.values()])
    known = np.isfinite(z).all(axis=0) & np.isfinite(drawn).all(axis=0)
    complete = np.asarray(z[:, known], dtype=np.float64)
    tasks = len(complete)
    alone, limit = rank_above_noise(complete, independent(np.sqrt(training[known]), tasks), seed)
    moved, moved_limit = rank_above_noise(complete, correlated(drawn[:, known], tasks), seed)
    share = float(training[known].mean() / complete.var())
    report = {
        "columns": int(known.sum()),
        "repeats": {task: len(group) for task, group in trainings.items()},
        "sigma": {"training": _root_mean(training), "engine": _root_mean(engine)},
        "sigma_by_task": {task: _root_mean(variance([g])) for task, g in trainings.items()},
        "sigma_over_columns": {"training": _spread(training), "engine": _spread(engine)},
        "noise_share_of_variance": share,
        "r2_ceiling": 1 - share,
        "rank_above": {
            "independent_noise": alone,
            "correlated_noise": moved,
            "shuffled_rows": rank_above_shuffled(complete, additive=False, seed=seed),
            "shuffled_rows_after_means": rank_above_shuffled(complete, additive=True, seed=seed),
        },
        "singular_value_limit": {"independent_noise": limit, "correlated_noise": moved_limit},
    }
    return report, np.sqrt(training), np.sqrt(engine)


def _root_mean(variances: np.ndarray) -> float | None:
    known = variances[np.isfinite(variances)]
    return float(np.sqrt(known.mean())) if len(known) else None


def _spread(variances: np.ndarray) -> dict[str, float] | None:
    known = np.sqrt(variances[np.isfinite(variances)])
    if not len(known):
        return None
    points = (0.05, 0.25, 0.5, 0.75, 0.95)
    return dict(zip(map(str, points), np.quantile(known, points).tolist(), strict=True))
