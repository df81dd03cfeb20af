"""How associations go with forgetting: the lines of associations.csv (paper, Table 2)."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import DRAWS, bootstrap_interval, tail

LEVEL = 0.95


def correlations(
    z: Matrix, tasks: Mapping[str, Sequence[str]], associations: Mapping[str, np.ndarray]
) -> list[dict]:
    """Correlation of associations (M, N) with Z, over all tasks and over the test tasks.

    Beside them stand two that read forgetting instead of examples, neither of which sees the
    row it is compared with: `other_tasks`, the mean over the rows of all other tasks, and
    `base_rate`, the mean over the rows of the (other) training tasks.

    Pearson and Spearman are over the flattened cells known in both; `spearman_within` is the
    mean over tasks of each row's own Spearman, which differences between tasks cannot raise.
    Intervals (95 percent, expanded percentiles: `lethe.statistics.tail`) resample tasks; ranks are
    not taken anew in each draw.

    Parameters
    ----------
    tasks
        task -> (group, split).
    """
    train = np.array([tasks[task][1] == "train" for task in z.tasks])
    known = z.values.astype(np.float64)
    compared = {name: np.asarray(values, np.float64) for name, values in associations.items()}
    compared["other_tasks"] = mean_of_others(known, np.ones_like(train))
    compared["base_rate"] = mean_of_others(known, train)
    records = []
    for name, values in compared.items():
        for split, rows in (("all", np.ones_like(train)), ("test", ~train)):
            line = _line(known[rows], values[rows])
            records.append({"association": name, "tasks": split, **line})
    return records


def mean_of_others(z: np.ndarray, used: np.ndarray) -> np.ndarray:
    """For each task the mean (M, N) over the rows where `used` (M,), its own left out.

    NaN cells are left out of the means; where no row is left, NaN.
    """
    known = np.isfinite(z)
    mine = known & used[:, None]
    filled = np.where(mine, z, 0)
    counts = mine.sum(axis=0) - mine
    sums = filled.sum(axis=0) - filled
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _line(truth: np.ndarray, values: np.ndarray) -> dict:
    """Correlations of one association (M, N) with Z (M, N), with intervals."""
    both = np.isfinite(truth) & np.isfinite(values)
    line = {"n_tasks": int(both.any(axis=1).sum()), "n_cells": int(both.sum())}
    ranks = np.full((2, *truth.shape), np.nan)
    ranks[0][both], ranks[1][both] = stats.rankdata(truth[both]), stats.rankdata(values[both])
    for name, (x, y) in {"pearson": (truth, values), "spearman": (ranks[0], ranks[1])}.items():
        r, low, high = _flattened(x, y, both)
        line |= {name: r, f"{name}_low": low, f"{name}_high": high}
    within = np.array(list(_within(truth, values, both)))
    low, high = bootstrap_interval(within, LEVEL)
    seen = within[np.isfinite(within)]
    line["spearman_within"] = float(seen.mean()) if len(seen) else float("nan")
    return line | {"spearman_within_low": low, "spearman_within_high": high}


def _within(truth: np.ndarray, values: np.ndarray, both: np.ndarray) -> Iterator[float]:
    """Each row's own Spearman; NaN where one side is constant, which orders nothing."""
    for x, y, seen in zip(truth, values, both, strict=True):
        varies = seen.sum() > 1 and np.ptp(x[seen]) > 0 and np.ptp(y[seen]) > 0
        yield float(stats.spearmanr(x[seen], y[seen]).statistic) if varies else float("nan")


def _flattened(x: np.ndarray, y: np.ndarray, both: np.ndarray) -> tuple[float, float, float]:
    """Pearson over all cells of `both`, and its interval over resampled tasks.

    A task counts by six sums of its cells, so that a draw of tasks costs M, not M x N.
    """
    # Centred first: the sums of squares would otherwise cancel.
    x, y = (np.where(both, v - v[both].mean(), 0) if both.any() else v for v in (x, y))
    cells = [both.astype(float), x, y, x * x, y * y, x * y]
    sums = np.stack([cell.sum(axis=1) for cell in cells], axis=1)
    whole = float(_pearson(sums.sum(axis=0)[None])[0])
    rows = np.flatnonzero(both.any(axis=1))
    if len(rows) < 2 or np.isnan(whole):
        return whole, float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(0, len(rows), (DRAWS, len(rows)))
    found = _pearson(sums[rows][drawn].sum(axis=1))
    cut = tail(len(rows), LEVEL)
    low, high = np.nanquantile(found, [cut, 1 - cut])
    return whole, float(low), float(high)


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson (D,) from sums (D, 6): n, x, y, xx, yy, xy; NaN where one side is constant."""
    n, x, y, xx, yy, xy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (xx - x * x / n) * (yy - y * y / n)
        # What is left of a constant after rounding is no variance.
        flat = variance <= 1e-20 * xx * yy
        return np.where(flat, np.nan, (xy - x * y / n) / np.sqrt(np.where(flat, 1, variance)))
