"""Forgetting at the same new-task loss: the distance of a run to the frontier of random replay.

A run that replays more forgets less and learns less, so a difference at equal settings can be the
dose. Random replay with several weights and ratios draws a curve of forgetting over new-task loss.
A run is better than a change of the dose only if it lies below that curve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lethe.replay.contrast_tests import mean_by_task
from lethe.statistics import DRAWS, tail

# Draws in which the run lies beside the frontier, as a share, above which no interval is given.
_MOST_OUTSIDE = 0.05


def compare_at_equal_loss(
    records: Sequence[Mapping[str, Any]], frontiers: Mapping[str, Sequence[str]], seed: int = 0
) -> list[dict[str, Any]]:
    """Distances of all runs to the frontiers of random replay, on the means over tasks.

    Parameters
    ----------
    records
        Records of replay.csv.
    frontiers
        Names of the runs that make up each frontier, by the frontier's name (`frontier_runs`).

    Returns
    -------
    Records of replay_frontier.csv, one per frontier and run: frontier, strategy (the run's name),
    tasks, eval_loss_after and heldout_forgetting of the run (nats), frontier_forgetting (that of
    the frontier at the same new-task loss), and difference with its 95 percent bootstrap interval
    over tasks and two-sided p. Beside the frontier's ends nothing is extrapolated: NaN.
    """
    names = list(dict.fromkeys(record["strategy"] for record in records))
    lines = []
    for frontier, reference in frontiers.items():
        for name in names:
            others = [other for other in reference if other != name]
            line = _distance(records, name, others, seed)
            lines.append({"frontier": frontier, "strategy": name} | line)
    return lines


def _distance(
    records: Sequence[Mapping[str, Any]], name: str, reference: Sequence[str], seed: int
) -> dict[str, Any]:
    runs = [name, *reference]
    losses = [mean_by_task(records, run, "eval_loss_after") for run in runs]
    forgetting = [mean_by_task(records, run, "heldout_forgetting") for run in runs]
    tasks = [task for task in losses[0] if all(task in of_run for of_run in losses)]
    x = np.array([[of_run[task] for task in tasks] for of_run in losses])
    y = np.array([[of_run[task] for task in tasks] for of_run in forgetting])
    known = np.isfinite(x).all(axis=0) & np.isfinite(y).all(axis=0)
    x, y = x[:, known], y[:, known]
    line: dict[str, Any] = {"tasks": int(known.sum())}
    if not known.any():
        return line
    loss = x.mean(axis=1)
    mean = y.mean(axis=1)
    expected = forgetting_at(loss[0], loss[1:], mean[1:])
    line["eval_loss_after"] = float(loss[0])
    line["heldout_forgetting"] = float(mean[0])
    line["frontier_forgetting"] = expected
    line["difference"] = float(mean[0] - expected)
    return line | _interval(x, y, seed)


def forgetting_at(loss: float, losses: np.ndarray, forgetting: np.ndarray) -> float:
    """Forgetting of the frontier at a new-task loss.

    Parameters
    ----------
    loss
        New-task loss, nats.
    losses, forgetting
        New-task loss and forgetting (n,) of the runs that make up the frontier, nats.

    Returns
    -------
    The frontier joins the runs that no other run beats in both by straight lines. NaN for a loss
    outside of them.
    """
    order = np.lexsort((forgetting, losses))
    lowest = np.inf
    best = []
    for i in order:
        if forgetting[i] < lowest:
            lowest = forgetting[i]
            best.append(i)
    if not best or not losses[best[0]] <= loss <= losses[best[-1]]:
        return float("nan")
    return float(np.interp(loss, losses[best], forgetting[best]))


def _interval(x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    """Interval and p of the distance; new-task loss `x` and forgetting `y` (1 + runs, tasks)."""
    tasks = x.shape[1]
    nothing = {"low": float("nan"), "high": float("nan"), "p": float("nan")}
    if tasks < 2:
        return nothing
    rng = np.random.default_rng([seed, 43])
    weights = rng.multinomial(tasks, np.full(tasks, 1 / tasks), DRAWS) / tasks
    loss = weights @ x.T
    mean = weights @ y.T
    distances = np.empty(DRAWS)
    for draw in range(DRAWS):
        expected = forgetting_at(loss[draw, 0], loss[draw, 1:], mean[draw, 1:])
        distances[draw] = mean[draw, 0] - expected
    inside = distances[np.isfinite(distances)]
    if len(inside) < (1 - _MOST_OUTSIDE) * DRAWS:
        return nothing
    cut = tail(tasks)
    low, high = np.quantile(inside, [cut, 1 - cut])
    # One is added to both counts, so that no finite number of draws gives p = 0.
    below = (1 + (inside < 0).sum()) / (1 + len(inside))
    above = (1 + (inside > 0).sum()) / (1 + len(inside))
    return {"low": float(low), "high": float(high), "p": float(min(1.0, 2 * min(below, above)))}
