"""Intervals and paired tests over tasks or seeds."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

# Tails of 0.6 percent are cut at eight tasks: fewer draws would leave the ends to luck.
DRAWS = 10_000


def tail(n: int, level: float = 0.95) -> float:
    """Share of resampled means of n >= 2 values to leave out on either side of an interval.

    Phi(-sqrt(n / (n - 1)) t_{(1 + level) / 2, n - 1}): the expanded percentile interval of
    Hesterberg (2015), "What Teachers Should Know About the Bootstrap", The American Statistician
    69(4). Resampled means of a few values are too narrow by sqrt((n - 1) / n) and have normal
    instead of Student's tails; at (1 - level) / 2 their quantiles would cover too little.
    """
    reach = np.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)
    return float(stats.norm.cdf(-reach))


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of the mean of `values` (n,), NaN left out.

    Fewer than two values have no spread to draw from: (nan, nan). No interval reaches past the
    least and the greatest value, which is too little for very few: at 95 percent, intervals of n =
    3, 4, 5, 8 and 20 normal values hold the mean 76, 87, 92, 95 and 95 times of 100, of
    exponential values 70, 82, 87, 90 and 93 times. See `tail`.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return float("nan"), float("nan")
    cut = tail(len(known), level)
    means = np.clip(_resampling(len(known), seed) @ known, known.min(), known.max())
    low, high = np.quantile(means, [cut, 1 - cut])
    return float(low), float(high)


@lru_cache(maxsize=4)
def _resampling(n: int, seed: int) -> np.ndarray:
    """What each of n values counts in each resampled mean: (DRAWS, n), rows add up to 1."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), DRAWS) / n


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its bootstrap interval, and Wilcoxon's signed-rank p-value."""

    mean: float
    low: float
    high: float
    p: float


def paired_difference(
    values: np.ndarray, reference: np.ndarray, level: float = 0.95, seed: int = 0
) -> Difference:
    """Compares values (n,) with a reference (n,), the same task at the same place.

    The interval resamples tasks; the p-value is two-sided, NaN under three pairs or if all
    differences are zero.

    Raises
    ------
    ValueError
        If the two are not of the same length.
    """
    if len(values) != len(reference):
        raise ValueError(f"{len(values)} values cannot be paired with {len(reference)}")
    differences = np.asarray(values, float) - np.asarray(reference, float)
    differences = differences[np.isfinite(differences)]
    low, high = bootstrap_interval(differences, level, seed)
    testable = len(differences) >= 3 and np.any(differences != 0)
    p = float(stats.wilcoxon(differences).pvalue) if testable else float("nan")
    mean = float(differences.mean()) if len(differences) else float("nan")
    return Difference(mean, low, high, p)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values (n,) for n comparisons; NaN stays NaN."""
    p = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p, np.nan)
    order = [i for i in np.argsort(p) if np.isfinite(p[i])]
    worst = 0.0
    for place, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * p[i]))
        corrected[i] = worst
    return corrected
