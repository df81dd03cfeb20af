"""Forgetting at the same new-task loss: the distance of a run to the frontier of random replay.

A run that replays more forgets less and learns less, so a difference at equal settings can be the
dose. Random replay with several weights and ratios draws a curve of forgetting over new-task loss.
A run is better than a change of the dose only if it lies below that curve.

The curve is drawn for the means over tasks, and for each task by itself: at equal mean loss, tasks
may still differ in what they pay.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from lethe.replay.contrast_tests import mean_by_task
from lethe.statistics import DRAWS, bootstrap_p, paired_difference, resampling, tail

# Measures that claims are made about, and those that are read beside them.
_CLAIMED = ("heldout_forgetting", "worst_domain_forgetting")
MEASURES_AT_EQUAL_LOSS = (*_CLAIMED, "rise_share", "rise_mean", "drift", "heldout_kl")
# Draws of the tasks for the former. Ten thousand could give no p below .001 with 29 tasks.
_MANY_DRAWS = 100_000
# If the run lies beside the frontier in more than this share of draws, no interval is given.
_MOST_OUTSIDE = 0.05


def compare_at_equal_loss(
    records: Sequence[Mapping[str, Any]],
    frontiers: Mapping[str, Sequence[str]],
    compared: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Distances of all runs to the frontiers of random replay, of the means and task by task.

    Parameters
    ----------
    records
        Records of replay.csv.
    frontiers
        Names of the runs that make up each frontier, by the frontier's name
        (`lethe.replay.planned_contrasts.frontier_runs`).
    compared
        Names of the runs that are compared with a frontier; all runs for a frontier that is not
        named (`lethe.replay.planned_contrasts.runs_by_frontier`).

    Returns
    -------
    Records of replay_frontier.csv, one per frontier, run and measure: frontier, strategy (the
    run's name), measure, tasks, eval_loss_after and value of the run (nats), frontier_value (that
    of the frontier at the same new-task loss), and difference with its 95 percent bootstrap
    interval over tasks and the p of that interval (`bootstrap_p`). Held-out forgetting and the
    worst domain are resampled ten times as often as the other measures, whose least p is larger. A
    run of the frontier is compared with the others of it. Beside the frontier's ends nothing is
    extrapolated: NaN.

    Then the same task by task: each task has a frontier of its own. task_difference is the mean
    distance over task_count tasks, with its interval, Wilcoxon's p, and the number of tasks below.
    A task that learns worse than every run of its frontier is compared with the one that forgets
    least. A task that learns better than every run of it is left out.
    """
    names = list(dict.fromkeys(record["strategy"] for record in records))
    measures = []
    for measure in MEASURES_AT_EQUAL_LOSS:
        if all(measure in record for record in records):
            measures.append(measure)
    # Each run's values are needed by every frontier that it is compared with.
    everyone = list(dict.fromkeys([*names, *chain.from_iterable(frontiers.values())]))
    all_losses = values_by_run(records, everyone, "eval_loss_after")
    all_values = {measure: values_by_run(records, everyone, measure) for measure in measures}
    lines = []
    for frontier, reference in frontiers.items():
        of_frontier = (compared or {}).get(frontier, names)
        for name in names:
            if name not in of_frontier:
                continue
            runs = [everyone.index(run) for run in dict.fromkeys([name, *reference])]
            for measure in measures:
                losses, values = _measured_tasks(all_losses[runs], all_values[measure][runs])
                line = {"frontier": frontier, "strategy": name, "measure": measure}
                draws = _MANY_DRAWS if measure in _CLAIMED else DRAWS
                line |= _distance(losses, values, seed, draws)
                lines.append(line | _distance_by_task(losses, values))
    return lines


def values_by_run(
    records: Sequence[Mapping[str, Any]], runs: Sequence[str], measure: str
) -> np.ndarray:
    """Means over seeds (runs, tasks) of a measure; NaN where a run lacks a task."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    values = np.full((len(runs), len(tasks)), np.nan)
    for row, run in enumerate(runs):
        by_task = mean_by_task(records, run, measure)
        for column, task in enumerate(tasks):
            values[row, column] = by_task.get(task, np.nan)
    return values


def forgetting_at(loss: np.ndarray, losses: np.ndarray, forgetting: np.ndarray) -> np.ndarray:
    """Forgetting (D,) of the frontier at new-task losses (D,), for D draws of the tasks.

    Parameters
    ----------
    loss
        New-task loss (D,), nats.
    losses, forgetting
        New-task loss and forgetting (D, n) of the runs that make up the frontier, nats.

    Returns
    -------
    The frontier joins the runs that no other run beats in both by straight lines. NaN for a loss
    outside of them.
    """
    rows = np.arange(len(loss))
    is_left = losses <= loss[:, None]
    # The last run of the frontier up to this loss is the one that forgets least.
    left = _least(np.where(is_left, forgetting, np.inf), losses)
    lowest = np.where(is_left.any(axis=1), forgetting[rows, left], np.nan)
    # The next one is the first that forgets even less.
    is_right = (losses >= loss[:, None]) & (forgetting < lowest[:, None])
    right = _least(np.where(is_right, losses, np.inf), forgetting)
    gap = losses[rows, right] - losses[rows, left]
    share = np.divide(loss - losses[rows, left], gap, out=np.zeros(len(loss)), where=gap > 0)
    between = lowest + share * (forgetting[rows, right] - lowest)
    at_left = np.where(losses[rows, left] == loss, lowest, np.nan)
    return np.where(is_right.any(axis=1), between, at_left)


def _least(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Columns (D,) of the least of the values (D, n); of equal ones that with the least other."""
    is_least = values == values.min(axis=1, keepdims=True)
    return np.argmin(np.where(is_least, others, np.inf), axis=1)


def _measured_tasks(losses: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tasks (columns) that all runs (rows) have a loss and a value of."""
    measured = np.isfinite(losses).all(axis=0) & np.isfinite(values).all(axis=0)
    return losses[:, measured], values[:, measured]


def _distance(losses: np.ndarray, values: np.ndarray, seed: int, draws: int) -> dict[str, Any]:
    """Distance of the first run to the others; both arrays are (runs, tasks)."""
    tasks = losses.shape[1]
    line: dict[str, Any] = {"tasks": tasks}
    if tasks == 0:
        return line
    equal = np.full((1, tasks), 1 / tasks)
    line |= _at_weights(equal, losses, values)
    line |= {"low": float("nan"), "high": float("nan"), "p": float("nan")}
    if tasks == 1:
        return line
    weights = resampling(tasks, (seed, 43), draws)
    differences = _differences(weights, losses, values)
    inside = differences[np.isfinite(differences)]
    if len(inside) < (1 - _MOST_OUTSIDE) * draws:
        return line
    cut = tail(tasks)
    low, high = np.quantile(inside, [cut, 1 - cut])
    # One is added to the count and to the draws, so that no finite number of draws gives p = 0.
    fewer = min((inside <= 0).sum(), (inside >= 0).sum())
    p = bootstrap_p(tasks, (1 + fewer) / (1 + len(inside)))
    return line | {"low": float(low), "high": float(high), "p": p}


def _distance_by_task(losses: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Mean distance of the first run to the others, each task by itself; both (runs, tasks)."""
    # Beyond its right end the frontier goes on level. Leaving such a task out would favour a run
    # that costs more than any dose of random replay.
    least = _least(values[1:].T, losses[1:].T)
    end = losses[1:][least, np.arange(losses.shape[1])]
    expected = forgetting_at(np.minimum(losses[0], end), losses[1:].T, values[1:].T)
    compared = np.isfinite(expected)
    difference = paired_difference(values[0][compared], expected[compared])
    return {
        "task_difference": difference.mean,
        "task_low": difference.low,
        "task_high": difference.high,
        "task_p": difference.p,
        "task_count": int(compared.sum()),
        "tasks_lower": int((values[0] < expected)[compared].sum()),
    }


def _at_weights(equal: np.ndarray, losses: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Means of the run over tasks of equal weight (1, tasks), and its distance."""
    value = float((equal @ values[0])[0])
    difference = float(_differences(equal, losses, values)[0])
    return {
        "eval_loss_after": float((equal @ losses[0])[0]),
        "value": value,
        "frontier_value": value - difference,
        "difference": difference,
    }


def _differences(weights: np.ndarray, losses: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Distance (D,) of the first run to the frontier of the others, for weights (D, tasks)."""
    loss = weights @ losses.T
    value = weights @ values.T
    return value[:, 0] - forgetting_at(loss[:, 0], loss[:, 1:], value[:, 1:])
