"""Measures that are finer than loss: their rank, and how they follow Z."""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from lethe.analysis import FINER_MEASURES
from lethe.analysis.low_rank import rank_curve
from lethe.analysis.noise import rank_above_shuffled
from lethe.statistics import bootstrap_interval

# Ranks that the table lists.
RANKS = (1, 3, 5)
# Draws of tasks for the interval of a correlation over tasks.
TASK_DRAWS = 2000


def finer_matrices(measures: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The matrices (M, N) that are compared with Z; `entropy_change` is after minus before."""
    change = measures["entropy_after"] - measures["entropy_before"]
    matrices = {}
    for name in FINER_MEASURES:
        matrices[name] = change if name == "entropy_change" else measures[name]
    if "answer_gained" in measures:
        matrices["answer_gained"] = measures["answer_gained"]
    return matrices


def describe_finer_measures(
    forgetting: np.ndarray, measures: Mapping[str, np.ndarray]
) -> list[dict]:
    """The lines of prediction_changes.csv: measure, statistic, value, low, high.

    `low` and `high` are 95 percent bootstrap intervals over tasks. The statistics are:

    - `mean`: the mean over tasks and examples.
    - `by_chance`, of `top1_lost` and `top1_gained`: its mean if a token were right before and after
      independently, given the shares of the example's tokens that are right; of `answer_gained` the
      share of the answers to the domain's other questions that would be right. `beyond_chance`: the
      mean less that.
    - `r2_rank_<r>`: R2 of the SVD of rank r (`rank_curve`); `r2_additive`: that of task and example
      means; `rank_above_shuffled`: the number of components beyond these means that exceed those of
      rows shuffled independently.
    - `pearson_within`, `spearman_within`: correlation with Z over the examples of a task.
    - `pearson_tasks`: correlation of the tasks' means with those of Z.
    - `from_forgetting`: how much of the squared error of the example means (of the other tasks) a
      line on forgetting removes, for a task that took no part in fitting the line;
      `to_forgetting`: the same with the two exchanged.

    Parameters
    ----------
    forgetting
        Z (M, N).
    measures
        Matrices (M, N) by measure (`lethe.matrix.prediction_files`).

    Raises
    ------
    ValueError
        If a matrix has another shape than Z.
    """
    for name, values in measures.items():
        if values.shape != forgetting.shape:
            raise ValueError(f"{name} has shape {values.shape}, Z has {forgetting.shape}")
    lines = _describe("forgetting", forgetting, forgetting)
    for name, values in finer_matrices(measures).items():
        lines += _describe(name, values, forgetting)
    lines += _chance_lines(measures)
    return lines


def _describe(name: str, values: np.ndarray, forgetting: np.ndarray) -> list[dict]:
    """All statistics of one matrix; those of Z itself have no relation to Z."""
    lines = [_line(name, "mean", _row_means(values))]
    lines += _rank_lines(name, values)
    if values is forgetting:
        return lines
    lines.append(_line(name, "pearson_within", _correlations_within(values, forgetting, _pearson)))
    lines.append(
        _line(name, "spearman_within", _correlations_within(values, forgetting, _spearman))
    )
    lines.append(_task_correlation(name, values, forgetting))
    lines.append(_line(name, "from_forgetting", explained_by_line(values, forgetting)))
    lines.append(_line(name, "to_forgetting", explained_by_line(forgetting, values)))
    return lines


def _line(name: str, statistic: str, by_task: np.ndarray) -> dict:
    """A mean over tasks (M,), with its interval."""
    finite = by_task[np.isfinite(by_task)]
    low, high = bootstrap_interval(finite)
    value = float(finite.mean()) if len(finite) else float("nan")
    return {"measure": name, "statistic": statistic, "value": value, "low": low, "high": high}


def _rank_lines(name: str, values: np.ndarray) -> list[dict]:
    complete = values[:, np.isfinite(values).all(axis=0)].astype(np.float64)
    if min(complete.shape) < 2 or np.ptp(complete) == 0:
        return []
    curve = rank_curve(complete)
    statistics = {"r2_additive": curve.comparators["additive"]}
    for rank in RANKS:
        if rank <= len(curve.r2):
            statistics[f"r2_rank_{rank}"] = float(curve.r2[rank - 1])
    statistics["rank_above_shuffled"] = float(rank_above_shuffled(complete, additive=True))
    lines = []
    for statistic, value in statistics.items():
        lines.append({"measure": name, "statistic": statistic, "value": value})
    return lines


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean (M,) of each row, NaN for a row without a value."""
    observed = np.isfinite(values)
    counts = observed.sum(axis=1)
    sums = np.where(observed, values, 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _correlations_within(
    values: np.ndarray,
    forgetting: np.ndarray,
    correlation: Callable[[np.ndarray, np.ndarray], float],
) -> np.ndarray:
    """Correlation (M,) over the examples of each task."""
    by_task = []
    for row, of_row in zip(values, forgetting, strict=True):
        both = np.isfinite(row) & np.isfinite(of_row)
        varies = both.sum() > 2 and np.ptp(row[both]) > 0 and np.ptp(of_row[both]) > 0
        by_task.append(correlation(row[both], of_row[both]) if varies else np.nan)
    return np.array(by_task)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b).statistic)


def _task_correlation(name: str, values: np.ndarray, forgetting: np.ndarray) -> dict:
    """Correlation of the tasks' means, with a percentile bootstrap interval over tasks."""
    means = np.column_stack([_row_means(values), _row_means(forgetting)])
    means = means[np.isfinite(means).all(axis=1)]
    line = {"measure": name, "statistic": "pearson_tasks", "value": float("nan")}
    if len(means) < 3 or (np.ptp(means, axis=0) == 0).any():
        return line
    rng = np.random.default_rng(73)
    draws = []
    for index in rng.integers(len(means), size=(TASK_DRAWS, len(means))):
        part = means[index]
        if (np.ptp(part, axis=0) > 0).all():
            draws.append(_pearson(part[:, 0], part[:, 1]))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = _pearson(means[:, 0], means[:, 1])
    return line | {"value": value, "low": float(low), "high": float(high)}


def explained_by_line(target: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Share (M,) of each task's squared error that a line on another matrix removes.

    Both matrices (M, N) enter as differences from the means of their columns over the other tasks.
    The line, with an intercept, is fitted on the other tasks' differences. The share is below 0
    where the line makes the error larger, and NaN where a task has no error to remove.
    """
    target = target.astype(np.float64)
    source = source.astype(np.float64)
    shares = []
    for row in range(len(target)):
        others = np.delete(np.arange(len(target)), row)
        means = [_column_means(matrix[others]) for matrix in (target, source)]
        x = source[others] - means[1]
        y = target[others] - means[0]
        both = np.isfinite(x) & np.isfinite(y)
        new_x = source[row] - means[1]
        new_y = target[row] - means[0]
        new = np.isfinite(new_x) & np.isfinite(new_y)
        total = np.square(new_y[new]).sum()
        if both.sum() < 3 or np.ptp(x[both]) == 0 or total == 0:
            shares.append(np.nan)
            continue
        slope, intercept = np.polyfit(x[both], y[both], deg=1)
        residual = new_y[new] - slope * new_x[new] - intercept
        shares.append(1 - np.square(residual).sum() / total)
    return np.array(shares)


def _column_means(values: np.ndarray) -> np.ndarray:
    """Mean (N,) of each column, NaN for a column without a value."""
    return _row_means(values.T)


def _chance_lines(measures: Mapping[str, np.ndarray]) -> list[dict]:
    """Tokens and answers that change sides, beside the number to expect by chance."""
    before = measures["top1_right_before"]
    after = measures["top1_right_after"]
    by_chance = {"top1_lost": before * (1 - after), "top1_gained": (1 - before) * after}
    if "answer_by_chance" in measures:
        by_chance["answer_gained"] = measures["answer_by_chance"]
    lines = []
    for name, chance in by_chance.items():
        chance = np.where(np.isfinite(measures[name]), chance, np.nan)
        lines.append(_line(name, "by_chance", _row_means(chance)))
        lines.append(_line(name, "beyond_chance", _row_means(measures[name] - chance)))
    return lines
