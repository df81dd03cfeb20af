"""Intervals and paired tests over tasks or seeds."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 2000


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (n,), NaN left out.

    Fewer than two values have no spread to draw from: (nan, nan).
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = known[rng.integers(0, len(known), (DRAWS, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
