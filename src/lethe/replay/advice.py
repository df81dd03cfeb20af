"""Advice for a new task: the replay run of the best expected forgetting and new-task loss.

Runs differ in strategy, ratio, weight and temperature. A task of which much would be forgotten may
need another one than a task that harms little. Here each run's result is a straight line over the
tasks' mean forgetting without replay. The lines come from tasks whose replay runs are known. For a
new task its predicted mean forgetting is put in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.config.replay_settings import FEWEST_TASKS_OF_ADVICE
from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix
from lethe.replay.frontier import values_by_run
from lethe.statistics import paired_difference

# New-task losses are compared with this run's, because tasks differ more in them than runs do.
_REFERENCE = "random"
# Shares of the least-squares slope that are tried. At 0 the advice is the best run on average.
_SLOPE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Advice:
    """The expected result of one replay run on a new task; all values in nats.

    Attributes
    ----------
    run
        Name of the run: a strategy or a variant.
    expected_forgetting
        Expected mean forgetting of the held-out examples.
    expected_eval_loss_difference
        Expected new-task loss minus that of random replay.
    expected_cost
        expected_eval_loss_difference + trade x expected_forgetting. The lowest is the best.
    forgetting_error, eval_loss_difference_error
        Typical errors of the two expectations: root mean square over the other tasks, each
        predicted without itself from its true mean forgetting. The error of the new task's
        predicted mean comes on top.
    """

    run: str
    expected_forgetting: float
    expected_eval_loss_difference: float
    expected_cost: float
    forgetting_error: float
    eval_loss_difference_error: float


def advise(
    runs: Sequence[Mapping[str, Any]],
    forgetting: Mapping[str, float],
    *,
    predicted: float,
    trade: float,
    candidates: Sequence[str] | None = None,
) -> list[Advice]:
    """Ranks replay runs for a new task by their expected trade.

    For each run, held-out forgetting and the difference in new-task loss are ridge regressions,
    with intercept, on the tasks' mean forgetting. All runs share one ridge penalty per measure. It
    is the one of the smallest leave-one-task-out error, so slopes that are mere noise shrink to 0.
    Nothing is extrapolated: a prediction beyond the tasks' range is moved to its end.

    Parameters
    ----------
    runs
        Records of replay.csv for the tasks that the advice rests on; seeds are averaged.
    forgetting
        Mean forgetting without replay of each of these tasks, in nats. The task's row of Z has it.
    predicted
        Predicted mean forgetting of the new task without replay, in nats.
    trade
        Nats of new-task loss that one nat of forgetting avoided is worth, above 0.
    candidates
        Names of the runs to choose from. None: all of `runs`. A run without a finite result on
        every task is left out.

    Returns
    -------
    Advice for each candidate, the best first.

    Raises
    ------
    LetheError
        If `trade` or `predicted` is no usable number, there are fewer than four tasks or two
        candidates, or random replay or a task's forgetting is missing.
    """
    if not 0 < trade < float("inf"):
        raise LetheError(f"advice: the trade must be a finite number above 0 (value seen: {trade})")
    if not np.isfinite(predicted):
        raise LetheError("advice: the predicted mean forgetting is NaN; predict the task again")
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    mean_forgetting = _mean_forgetting(tasks, forgetting)
    names = _candidate_names(runs, candidates)
    kept = values_by_run(runs, names, "heldout_forgetting")
    learned = values_by_run(runs, names, "eval_loss_after")
    difference = learned - values_by_run(runs, [_REFERENCE], "eval_loss_after")
    is_complete = (np.isfinite(kept) & np.isfinite(difference)).all(axis=1)
    names = [name for name, complete in zip(names, is_complete, strict=True) if complete]
    if len(names) < 2:
        raise LetheError(
            f"advice: {len(names)} of the candidate runs have a result on all {len(tasks)} tasks, "
            "and a choice needs two; give more runs, or finish those that exist"
        )
    of_forgetting = _Lines.fit(mean_forgetting, kept[is_complete])
    of_difference = _Lines.fit(mean_forgetting, difference[is_complete])
    expected_forgetting = of_forgetting.at(predicted)
    expected_difference = of_difference.at(predicted)
    cost = expected_difference + trade * expected_forgetting
    ranked = []
    for i in np.argsort(cost, kind="stable"):
        ranked.append(
            Advice(
                run=names[i],
                expected_forgetting=float(expected_forgetting[i]),
                expected_eval_loss_difference=float(expected_difference[i]),
                expected_cost=float(cost[i]),
                forgetting_error=float(of_forgetting.errors[i]),
                eval_loss_difference_error=float(of_difference.errors[i]),
            )
        )
    return ranked


def mean_by_row(matrix: Matrix, example_ids: Sequence[str]) -> dict[str, float]:
    """Mean forgetting by task over these examples, of Z or of its prediction; NaN is left out.

    Raises
    ------
    LetheError
        If the matrix does not hold one of the examples.
    """
    numbers = {example_id: number for number, example_id in enumerate(matrix.example_ids)}
    missing = [example_id for example_id in example_ids if example_id not in numbers]
    if missing:
        raise LetheError(f"advice: the matrix has no column of the example {missing[0]!r}")
    values = matrix.values[:, [numbers[example_id] for example_id in example_ids]]
    means = {}
    for task, row in zip(matrix.tasks, values.astype(float), strict=True):
        finite = row[np.isfinite(row)]
        means[task] = float(finite.mean()) if len(finite) else float("nan")
    return means


def _mean_forgetting(tasks: Sequence[str], forgetting: Mapping[str, float]) -> np.ndarray:
    """Mean forgetting (tasks,) without replay, checked."""
    if len(tasks) < FEWEST_TASKS_OF_ADVICE:
        raise LetheError(
            f"advice: rests on the replay runs of {len(tasks)} other task(s), and needs at least "
            f"{FEWEST_TASKS_OF_ADVICE}; run replay on more tasks (replay.tasks: all)"
        )
    for task in tasks:
        if not np.isfinite(forgetting.get(task, np.nan)):
            raise LetheError(f"advice: no mean forgetting without replay is known of task {task!r}")
    return np.array([forgetting[task] for task in tasks])


def _candidate_names(
    runs: Sequence[Mapping[str, Any]], candidates: Sequence[str] | None
) -> list[str]:
    names = list(dict.fromkeys(run["strategy"] for run in runs))
    if _REFERENCE not in names:
        raise LetheError(
            f"advice: there is no run {_REFERENCE!r}, which new-task losses are compared with"
        )
    if candidates is None:
        return names
    missing = [name for name in candidates if name not in names]
    if missing:
        raise LetheError(f"advice: no run {missing[0]!r}; runs: {', '.join(names)}")
    return list(candidates)


@dataclass(frozen=True)
class _Lines:
    """One straight line per run over the tasks' mean forgetting."""

    centre: float
    lowest: float
    highest: float
    means: np.ndarray
    slopes: np.ndarray
    errors: np.ndarray

    @classmethod
    def fit(cls, mean_forgetting: np.ndarray, values: np.ndarray) -> "_Lines":
        """Fits lines to values (runs, tasks); `errors` (runs,) are leave-one-task-out."""
        centre = mean_forgetting.mean()
        centred = mean_forgetting - centre
        spread = float(centred @ centred)
        means = values.mean(axis=1)
        slopes = np.zeros(len(values))
        if spread > 0:
            slopes = (values @ centred) / spread
        fits = []
        for share in _SLOPE_SHARES:
            residuals = values - means[:, None] - share * np.outer(slopes, centred)
            # Weight of a task's own value in its fitted value. A ridge penalty of
            # spread x (1 / share - 1) gives this share of the slope, and the residual of a fit
            # without the task is the residual / (1 - weight).
            weight = np.full(len(centred), 1 / len(centred))
            if spread > 0:
                weight += share * centred**2 / spread
            # A task that alone has a spread determines the slope; its residual says nothing.
            without = np.divide(
                residuals, 1 - weight, out=np.full_like(residuals, np.inf), where=weight < 1 - 1e-9
            )
            fits.append((float(np.square(without).sum()), share, without))
        _, share, without = min(fits, key=lambda fit: fit[:2])
        return cls(
            centre=float(centre),
            lowest=float(mean_forgetting.min()),
            highest=float(mean_forgetting.max()),
            means=means,
            slopes=share * slopes,
            errors=np.sqrt(np.square(without).mean(axis=1)),
        )

    def at(self, mean_forgetting: float) -> np.ndarray:
        """Values (runs,) at a mean forgetting."""
        inside = min(max(mean_forgetting, self.lowest), self.highest)
        return self.means + self.slopes * (inside - self.centre)


def advise_every_task(
    runs: Sequence[Mapping[str, Any]],
    forgetting: Mapping[str, float],
    *,
    predicted: Mapping[str, float],
    trades: Sequence[float],
    candidates: Sequence[str],
    primary: str | None = None,
) -> list[dict[str, Any]]:
    """Advises every task from the replay runs of all others, and sets the truth beside it.

    This is leave-one-task-out: no run and no row of a task enters its own advice. Its predicted
    mean forgetting comes from its probes.

    Parameters
    ----------
    runs, forgetting
        As in `advise`, of all tasks.
    predicted
        Predicted mean forgetting of each task without replay, in nats.
    trades
        Each is advised for by itself.
    candidates
        Names of the runs to choose from; none that reads the task's measured row.
    primary
        Name of the run to compare with, or None.

    Returns
    -------
    Records of replay_advice.csv, one per trade and task. Costs are as in `Advice.expected_cost`,
    of measured values. `best_run` is the candidate of the lowest cost in hindsight, `average_run`
    the one of the lowest mean cost over the other tasks.

    Raises
    ------
    LetheError
        As in `advise`.
    """
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    if primary is not None and all(run["strategy"] != primary for run in runs):
        raise LetheError(f"advice: there is no run {primary!r} to compare with")
    lines = []
    for trade in trades:
        costs = _costs(runs, trade)
        for task in tasks:
            others = [run for run in runs if run["task"] != task]
            ranked = advise(
                others,
                forgetting,
                predicted=predicted.get(task, np.nan),
                trade=trade,
                candidates=candidates,
            )
            of_task = {one.run: costs[one.run].get(task, np.nan) for one in ranked}
            best = ranked[0]
            best_run = _cheapest(costs, of_task, [task])
            average_run = _cheapest(costs, of_task, [other for other in tasks if other != task])
            line = {
                "task": task,
                "trade": trade,
                "other_tasks": len(tasks) - 1,
                "mean_forgetting": forgetting[task],
                "predicted_mean_forgetting": predicted[task],
                "run": best.run,
                "expected_forgetting": best.expected_forgetting,
                "forgetting_error": best.forgetting_error,
                "expected_eval_loss_difference": best.expected_eval_loss_difference,
                "eval_loss_difference_error": best.eval_loss_difference_error,
                "expected_cost": best.expected_cost,
                "cost": of_task[best.run],
                "best_run": best_run,
                "best_cost": of_task.get(best_run, np.nan),
                "average_run": average_run,
                "average_cost": of_task[average_run],
            }
            if primary is not None:
                line["primary_run"] = primary
                line["primary_cost"] = costs[primary].get(task, np.nan)
            lines.append(line)
    return lines


def advise_from_tables(
    runs: Sequence[Mapping[str, Any]],
    z: Matrix,
    predictions: Matrix,
    upstream: Sequence[UpstreamExample],
    *,
    settings: Mapping[str, Mapping[str, Any]],
    trades: Sequence[float],
    primary: str | None = None,
) -> list[dict[str, Any]]:
    """Advises every task of an experiment: `advise_every_task` with the settings of each advice.

    Parameters
    ----------
    runs, trades, primary
        As in `advise_every_task`.
    z, predictions
        Measured and predicted forgetting of the tasks, in nats.
    upstream
        The upstream examples. A task's forgetting is the mean over the held-out ones.
    settings
        Settings of each run that may be advised, by its name.

    Returns
    -------
    Records of replay_advice.csv.
    """
    heldout = [example.example_id for example in upstream if example.split == "heldout"]
    lines = advise_every_task(
        runs,
        mean_by_row(z, heldout),
        predicted=mean_by_row(predictions, heldout),
        trades=trades,
        candidates=list(settings),
        primary=primary,
    )
    return [line | settings[line["run"]] for line in lines]


def _costs(runs: Sequence[Mapping[str, Any]], trade: float) -> dict[str, dict[str, float]]:
    """Measured cost by run and task: new-task loss above random replay's + trade x forgetting."""
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    names = list(dict.fromkeys(run["strategy"] for run in runs))
    kept = values_by_run(runs, names, "heldout_forgetting")
    learned = values_by_run(runs, names, "eval_loss_after")
    reference = values_by_run(runs, [_REFERENCE], "eval_loss_after")
    costs = learned - reference + trade * kept
    return {
        name: dict(zip(tasks, of_run.tolist(), strict=True))
        for name, of_run in zip(names, costs, strict=True)
    }


def _cheapest(
    costs: Mapping[str, Mapping[str, float]], names: Iterable[str], tasks: Sequence[str]
) -> str:
    """The run of the lowest mean cost over the tasks; empty if no run has all of them."""
    means = {name: np.mean([costs[name].get(task, np.nan) for task in tasks]) for name in names}
    measured = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    return min(measured, key=measured.__getitem__, default="")


def score_advice(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compares the cost of the advised runs with what else one could have taken.

    Parameters
    ----------
    lines
        Records of replay_advice.csv (`advise_every_task`).

    Returns
    -------
    Records of replay_advice_score.csv, one per trade and reference: the best run in hindsight (the
    regret, never below 0), the primary run on every task, and the best run on average over the
    other tasks. `cost` and `reference_cost` are means over tasks in nats, `difference` is cost -
    reference_cost with its 95 percent bootstrap interval over tasks and Wilcoxon's two-sided p:
    below 0, the advice is better. `expected_cost` is the mean that the advice expected, and
    `same_run` the number of tasks for which the advice is the reference's run.
    """
    records = []
    for trade in dict.fromkeys(line["trade"] for line in lines):
        of_trade = [line for line in lines if line["trade"] == trade]
        for reference in ("best", "primary", "average"):
            if f"{reference}_run" in of_trade[0]:
                records.append({"trade": trade, **_compare_cost(of_trade, reference)})
    return records


_LABELS = {"best": "best in hindsight", "primary": "primary run", "average": "best on average"}


def _compare_cost(lines: Sequence[Mapping[str, Any]], reference: str) -> dict[str, Any]:
    cost = np.array([line["cost"] for line in lines], dtype=float)
    other = np.array([line[f"{reference}_cost"] for line in lines], dtype=float)
    expected = np.array([line["expected_cost"] for line in lines], dtype=float)
    is_measured = np.isfinite(cost) & np.isfinite(other)
    cost = cost[is_measured]
    other = other[is_measured]
    difference = paired_difference(cost, other)
    # A regret is never below 0, so a test of whether it differs from 0 has no meaning.
    p = float("nan") if reference == "best" else difference.p
    return {
        "reference": _LABELS[reference],
        "tasks": len(cost),
        "expected_cost": float(expected[is_measured].mean()) if len(cost) else float("nan"),
        "cost": float(cost.mean()) if len(cost) else float("nan"),
        "reference_cost": float(other.mean()) if len(cost) else float("nan"),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": p,
        "tasks_lower": int((cost < other).sum()),
        "same_run": sum(line["run"] == line[f"{reference}_run"] for line in lines),
    }
