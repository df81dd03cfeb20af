"""Correlation of associations with forgetting: the lines of associations.csv (paper, Table 2)."""

from collections.abc import Iterator, Mapping

import numpy as np
from scipy import stats

from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import DRAWS, bootstrap_interval, tail

LEVEL = 0.95


def correlate_with_forgetting(
    z: Matrix, tasks: Mapping[str, Task], associations: Mapping[str, np.ndarray]
) -> list[dict]:
    """Correlates associations (M, N) with Z, over all tasks and over the test tasks.

    Two further lines use forgetting instead of examples. Neither uses the row that it is compared
    with: `other_tasks` is the mean over the rows of all other tasks, and `base_rate` is the mean
    over the rows of the (other) training tasks.

    Pearson and Spearman are taken over the flattened cells that are finite in both matrices.
    `spearman_within` is the mean over tasks of each row's own Spearman, which differences between
    tasks cannot raise. Intervals (95 percent, expanded percentiles: `lethe.statistics.tail`)
    resample tasks; the ranks stay those of all tasks in each resample.

    Parameters
    ----------
    tasks
        Task by name, for every row of Z.
    """
    is_train = np.array([tasks[name].split == "train" for name in z.tasks])
    every_row = np.ones_like(is_train)
    truth = z.values.astype(np.float64)
    compared = dict(associations)
    compared["other_tasks"] = mean_of_other_tasks(truth, every_row)
    compared["base_rate"] = mean_of_other_tasks(truth, is_train)
    records = []
    for name, association in compared.items():
        values = np.asarray(association, np.float64)
        for split, rows in (("all", every_row), ("test", ~is_train)):
            line = _correlation_line(truth[rows], values[rows])
            records.append({"association": name, "tasks": split, **line})
    return records


def mean_of_other_tasks(z: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Computes, for each task, the mean (M, N) of the other rows where `used` (M,) is true.

    NaN cells are left out of the means; the mean is NaN where no other row has a value.
    """
    included = np.isfinite(z) & used[:, None]
    filled = np.where(included, z, 0)
    counts = included.sum(axis=0) - included
    sums = filled.sum(axis=0) - filled
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _correlation_line(truth: np.ndarray, values: np.ndarray) -> dict:
    """Correlates one association (M, N) with Z (M, N), with intervals."""
    both = np.isfinite(truth) & np.isfinite(values)
    line = {"n_tasks": int(both.any(axis=1).sum()), "n_cells": int(both.sum())}
    truth_ranks = _ranks(truth, both)
    value_ranks = _ranks(values, both)
    for name, x, y in (("pearson", truth, values), ("spearman", truth_ranks, value_ranks)):
        r, low, high = _flattened_pearson(x, y, both)
        line |= {name: r, f"{name}_low": low, f"{name}_high": high}
    within = np.array(list(_spearman_by_row(truth, values, both)))
    finite = within[np.isfinite(within)]
    low, high = bootstrap_interval(within, LEVEL)
    line["spearman_within"] = float(finite.mean()) if len(finite) else float("nan")
    line["spearman_within_low"] = low
    line["spearman_within_high"] = high
    return line


def _ranks(values: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Ranks (M, N) of the cells of `both`, NaN elsewhere."""
    ranks = np.full(values.shape, np.nan)
    ranks[both] = stats.rankdata(values[both])
    return ranks


def _spearman_by_row(truth: np.ndarray, values: np.ndarray, both: np.ndarray) -> Iterator[float]:
    """Yields each row's own Spearman; NaN where one side is constant and so orders nothing."""
    for x, y, mask in zip(truth, values, both, strict=True):
        varies = mask.sum() > 1 and np.ptp(x[mask]) > 0 and np.ptp(y[mask]) > 0
        yield float(stats.spearmanr(x[mask], y[mask]).statistic) if varies else float("nan")


def _flattened_pearson(
    x: np.ndarray, y: np.ndarray, both: np.ndarray
) -> tuple[float, float, float]:
    """Pearson over all cells of `both`, and its interval over resampled tasks.

    Each task enters by six sums of its cells, so that one resample costs M instead of M x N.
    """
    x = _centred(x, both)
    y = _centred(y, both)
    cells = [both.astype(float), x, y, x * x, y * y, x * y]
    sums = np.stack([cell.sum(axis=1) for cell in cells], axis=1)
    estimate = float(_pearson(sums.sum(axis=0)[None])[0])
    rows = np.flatnonzero(both.any(axis=1))
    if len(rows) < 2 or np.isnan(estimate):
        return estimate, float("nan"), float("nan")
    resamples = np.random.default_rng(0).integers(0, len(rows), (DRAWS, len(rows)))
    resampled = _pearson(sums[rows][resamples].sum(axis=1))
    cut = tail(len(rows), LEVEL)
    low, high = np.nanquantile(resampled, [cut, 1 - cut])
    return estimate, float(low), float(high)


def _centred(values: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Values minus their mean over `both`, and 0 elsewhere.

    Without centring, the sums of squares in `_pearson` would cancel.
    """
    if not both.any():
        return values
    return np.where(both, values - values[both].mean(), 0)


def _pearson(sums: np.ndarray) -> np.ndarray:
    """Pearson (D,) from sums (D, 6): n, x, y, xx, yy, xy; NaN where one side is constant."""
    n, x, y, xx, yy, xy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = (xx - x * x / n) * (yy - y * y / n)
        # A constant leaves a rounding error here, which is no variance.
        flat = variance <= 1e-20 * xx * yy
        return np.where(flat, np.nan, (xy - x * y / n) / np.sqrt(np.where(flat, 1, variance)))
