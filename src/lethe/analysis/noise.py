"""How much of Z is noise: sigma of training and of measuring, and the rank above the noise.

Two questions need two kinds of null. Would another training seed give the same component?
Singular values are compared with those of noise alone, of the size that repeats have. Do tasks
share which examples they forget? Singular values are compared with those of Z after each row was
shuffled separately, which keeps every row's values and breaks every association.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

DRAWS = 50
LEVEL = 0.95
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def pooled_variance(groups: Sequence[np.ndarray]) -> np.ndarray:
    """Variance (N,) per column within groups of repeats (n, N), pooled over groups.

    Unbiased: squared deviations from each group's mean over the sum of n - 1. NaN where no group
    has two known values.
    """
    squares = 0.0
    freedom = 0
    for group in groups:
        finite = np.isfinite(group)
        counts = finite.sum(axis=0)
        values = np.where(finite, group, 0.0)
        means = values.sum(axis=0) / np.maximum(counts, 1)
        squares = squares + np.where(finite, np.square(group - means), 0.0).sum(axis=0)
        freedom = freedom + np.maximum(counts - 1, 0)
    return np.divide(squares, freedom, out=np.full(np.shape(squares), np.nan), where=freedom > 0)


def contrasts(group: np.ndarray) -> np.ndarray:
    """Samples of the noise (n - 1, N) from n repeats (n, N): orthonormal contrasts (Helmert).

    Each has the covariance over columns of one repeat's noise. The part that the repeats share
    cancels.
    """
    count = len(group)
    weights = np.zeros((count - 1, count))
    for row in range(1, count):
        weights[row - 1, :row] = 1.0
        weights[row - 1, row] = -row
        weights[row - 1] /= np.sqrt(row * (row + 1))
    return weights @ group


def rank_above_noise(
    z: np.ndarray, noise: Callable[[np.random.Generator], np.ndarray], seed: int = 0
) -> tuple[int, float]:
    """Number of components of Z (M, N) above noise, and the singular value of that limit.

    The limit is the 95 percent quantile of the largest singular value of noise matrices. A
    singular value of Z above it cannot come from a signal of lower rank plus such noise (Weyl),
    so the result is a lower bound of the signal's rank.

    Parameters
    ----------
    noise
        Draws the Gram matrix (M, M) of one noise matrix.
    """
    rng = np.random.default_rng([seed, 23])
    largest = [_singular_values(noise(rng))[0] for _ in range(DRAWS)]
    limit = float(np.quantile(largest, LEVEL))
    return int((_singular_values(z @ z.T) > limit).sum()), limit


def independent_noise(
    deviations: np.ndarray, tasks: int
) -> Callable[[np.random.Generator], np.ndarray]:
    """Noise of independent cells with a standard deviation (N,) per column."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        cells = rng.normal(size=(tasks, len(deviations))) * deviations
        return cells @ cells.T

    return draw


def correlated_noise(draws: np.ndarray, tasks: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Noise whose rows vary together over columns as its measured samples (D, N) do.

    A training seed changes many examples at once, so its noise has itself low rank, and larger
    singular values than independent cells of the same size.
    """
    gram = draws @ draws.T / len(draws)

    def draw(rng: np.random.Generator) -> np.ndarray:
        weights = rng.normal(size=(tasks, len(gram)))
        return weights @ gram @ weights.T

    return draw


def rank_above_shuffled(z: np.ndarray, additive: bool, seed: int = 0) -> int:
    """Number of components of Z (M, N) above those of Z with each row shuffled separately.

    Parallel analysis with deflation (Dobriban and Owen 2019). The largest singular value is
    compared with the 95 percent quantile of those of shuffled matrices. If it is above, the
    component is subtracted and the remainder is tested in the same way. The shuffled rows lose
    the same directions, after they are scaled to the sizes that independent rows had before.
    Task means are subtracted first, because shuffling cannot break them.

    With `additive`, example means are subtracted too, before and after shuffling. The result then
    counts association beyond 'some examples are forgotten by every task'. Without it, those means
    are themselves an association, and the first component is above the limit for any Z with such
    means.
    """
    rng = np.random.default_rng([seed, 29])
    remainder = np.asarray(z, dtype=np.float64)
    count = len(z)
    projection = np.eye(count) - additive / count
    remainder = projection @ (remainder - remainder.mean(axis=1, keepdims=True))
    smallest = 1e-7 * _singular_values(remainder @ remainder.T)[0]
    # Shuffling does not change the size of the last dimension.
    testable = max(count - additive - 1, 0)
    for rank in range(testable):
        eigenvalues, vectors = np.linalg.eigh(remainder @ remainder.T)
        limit = max(smallest, _shuffled_limit(remainder, projection, rng))
        if np.sqrt(max(eigenvalues[-1], 0)) <= limit:
            return rank
        top = vectors[:, -1:]
        remainder = remainder - top @ (top.T @ remainder)
        projection = projection - top @ top.T
    return testable


def _shuffled_limit(
    remainder: np.ndarray, projection: np.ndarray, rng: np.random.Generator
) -> float:
    """95 percent quantile of the largest singular value, shuffled and of the same sum of squares.

    Parameters
    ----------
    remainder
        Z (M, N) without the components found so far.
    projection
        Projection (M, M) that removed them.
    """
    squares = np.square(remainder).sum(axis=1)
    unprojected = _unprojected_squares(squares, projection)
    scale = np.sqrt(unprojected / np.maximum(squares, 1e-300))[:, None]
    largest = []
    for _ in range(DRAWS):
        shuffled = projection @ (scale * rng.permuted(remainder, axis=1))
        gram = shuffled @ shuffled.T
        to_same_squares = np.sqrt(squares.sum() / max(np.trace(gram), 1e-300))
        largest.append(_singular_values(gram)[0] * to_same_squares)
    return float(np.quantile(largest, LEVEL))


def _unprojected_squares(squares: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Sums of squares (M,) of independent rows before a projection P that reduced them to these.

    A projected row i has sum_j P_ij^2 s_j, so rows become more equal in size. Shuffled rows are
    projected a second time. Without enlarging them first they would be more equal still, and
    their largest singular value too small where tasks differ in spread.
    """
    return np.maximum(np.linalg.lstsq(np.square(projection), squares, rcond=1e-6)[0], 0)


def _singular_values(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))


def noise_floor(
    z: np.ndarray,
    trainings: Mapping[str, np.ndarray],
    measurements: Sequence[np.ndarray],
    seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Estimates the noise in Z (M, N) and the rank above it.

    Parameters
    ----------
    trainings
        task -> forgetting (repeats, N) of trainings that differ only in their seed.
    measurements
        For some trainings, their forgetting (repeats, N), scored in other batches each time.

    Returns
    -------
    The content of noise.json: sigma in nats per cell (root of the mean variance over cells), by
    task and over columns; the share of Z's variance that is noise, hence the R2 that no
    prediction of another training can exceed; ranks above the nulls. Then sigma (N,) per column
    of the training seed and of the engine (NaN: not measured).
    """
    training = pooled_variance(list(trainings.values()))
    engine = training * np.nan
    if measurements:
        engine = np.broadcast_to(pooled_variance(measurements), training.shape)
    samples = np.concatenate([contrasts(group) for group in trainings.values()])
    complete = np.isfinite(z).all(axis=0) & np.isfinite(samples).all(axis=0)
    values = np.asarray(z[:, complete], dtype=np.float64)
    tasks = len(values)
    independent = independent_noise(np.sqrt(training[complete]), tasks)
    independent_rank, independent_limit = rank_above_noise(values, independent, seed)
    correlated = correlated_noise(samples[:, complete], tasks)
    correlated_rank, correlated_limit = rank_above_noise(values, correlated, seed)
    share = float(training[complete].mean() / values.var())
    sigma_by_task = {}
    for task, repeats in trainings.items():
        sigma_by_task[task] = _root_mean(pooled_variance([repeats]))
    report = {
        "columns": int(complete.sum()),
        "repeats": {task: len(repeats) for task, repeats in trainings.items()},
        "sigma": {"training": _root_mean(training), "engine": _root_mean(engine)},
        "sigma_by_task": sigma_by_task,
        "sigma_over_columns": {"training": _spread(training), "engine": _spread(engine)},
        "noise_share_of_variance": share,
        "r2_ceiling": 1 - share,
        "rank_above": {
            "independent_noise": independent_rank,
            "correlated_noise": correlated_rank,
            "shuffled_rows": rank_above_shuffled(values, additive=False, seed=seed),
            "shuffled_rows_after_means": rank_above_shuffled(values, additive=True, seed=seed),
        },
        "singular_value_limit": {
            "independent_noise": independent_limit,
            "correlated_noise": correlated_limit,
        },
    }
    return report, np.sqrt(training), np.sqrt(engine)


def _root_mean(variances: np.ndarray) -> float | None:
    finite = variances[np.isfinite(variances)]
    return float(np.sqrt(finite.mean())) if len(finite) else None


def _spread(variances: np.ndarray) -> dict[str, float] | None:
    finite = np.sqrt(variances[np.isfinite(variances)])
    if not len(finite):
        return None
    values = np.quantile(finite, QUANTILES).tolist()
    return {str(q): value for q, value in zip(QUANTILES, values, strict=True)}
