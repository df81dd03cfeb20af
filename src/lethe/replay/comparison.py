"""Compares the runs of replay on held-out upstream examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lethe.analysis.rises import RunKey
from lethe.replay.contrast_tests import largest_difference, mean_by_task, paired_forgetting
from lethe.replay.two_level import two_level_interval
from lethe.statistics import bootstrap_interval, holm, paired_difference

# Measures that every run has. A lower value is better for both.
MEASURES = ("heldout_forgetting", "eval_loss_after")
# Measures of what happened to single examples; a run without such a description lacks them.
RISE_MEASURES = ("worst_domain_forgetting", "rise_share", "rise_mean", "drift", "heldout_kl")
# Shares of examples that a memory or router uses the fine-tuned model for; other runs have none.
ROUTING_SHARES = ("heldout_routed", "eval_routed")
REFERENCE = "random"


def compare(
    runs: Sequence[Mapping[str, Any]], forgetting: Mapping[RunKey, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """Compares every run with random replay; all comparisons of this table are exploratory.

    `lethe.replay.contrast_tests.compare_planned` tests the planned ones.

    Parameters
    ----------
    runs
        Records of replay.csv: strategy (the run's name), task, seed, heldout_forgetting,
        eval_loss_after (nats), and where they were measured those of `RISE_MEASURES`.
    forgetting
        Forgetting (n,) of the held-out examples by run, for intervals over tasks and examples.

    Returns
    -------
    Records of replay_comparison.csv, one per name of a run: strategy, tasks, seeds. For each
    measure its mean with a 95 percent interval over tasks, the mean difference to `random` on the
    same task (seeds averaged) with its interval, Wilcoxon's p, and p corrected by Holm over all
    names. `rise_mean_tasks` counts the tasks on which any loss rises; the others have no mean
    rise. Then the number of tasks with less held-out forgetting than `random`, the largest
    difference of the new-task loss with its task, the mean share of loss tokens that replay
    carries, the share of draws that are random replay in effect, and the interval of the held-out
    difference over tasks and examples. If a run has a memory or router, also the shares of routed
    examples with an interval over tasks, and the mean bytes that are kept beside the base model.
    """
    names = list(dict.fromkeys(run["strategy"] for run in runs))
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    records: list[dict[str, Any]] = []
    for name in names:
        seeds = len({run["seed"] for run in runs if run["strategy"] == name})
        records.append({"strategy": name, "tasks": len(tasks), "seeds": seeds})
    measures = [*MEASURES]
    measures += [measure for measure in RISE_MEASURES if all(measure in run for run in runs)]
    for measure in measures:
        _add_measure(records, runs, tasks, measure)
    for record in records:
        record |= _tasks_of(runs, tasks, record["strategy"])
        if forgetting is not None:
            record |= _two_level(forgetting, record["strategy"])
    if any("memory_bytes" in run for run in runs):
        for record in records:
            record |= _describe_routing(runs, tasks, record["strategy"])
    return records


def _describe_routing(
    runs: Sequence[Mapping[str, Any]], tasks: Sequence[str], strategy: str
) -> dict[str, float]:
    """Means of the routing columns; NaN for a run without a memory or router."""
    of_strategy = [run for run in runs if run["strategy"] == strategy and "memory_bytes" in run]
    described: dict[str, float] = {}
    for share in ROUTING_SHARES:
        values = _by_task(of_strategy, strategy, tasks, share)
        measured = values[np.isfinite(values)]
        low, high = bootstrap_interval(values)
        described[share] = float(measured.mean()) if len(measured) else float("nan")
        described[f"{share}_low"] = low
        described[f"{share}_high"] = high
    described["memory_bytes"] = _mean_of_known(of_strategy, "memory_bytes")
    return described


def _add_measure(
    records: list[dict[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    measure: str,
) -> None:
    """Adds the columns of one measure to the records of all names."""
    reference = _by_task(runs, REFERENCE, tasks, measure)
    for record in records:
        values = _by_task(runs, record["strategy"], tasks, measure)
        record |= _describe_measure(measure, values, reference)
        if measure == "rise_mean":
            record["rise_mean_tasks"] = int(np.isfinite(values).sum())
    others = [record for record in records if record["strategy"] != REFERENCE]
    corrected = holm(np.array([record[f"{measure}_difference_p"] for record in others]))
    for record, p in zip(others, corrected, strict=True):
        record[f"{measure}_difference_p_holm"] = float(p)


def _by_task(
    runs: Sequence[Mapping[str, Any]], strategy: str, tasks: Sequence[str], measure: str
) -> np.ndarray:
    """Mean over seeds (tasks,) of the runs of one name; NaN for a task without a run."""
    means = mean_by_task(runs, strategy, measure)
    return np.array([means.get(task, np.nan) for task in tasks])


def _describe_measure(measure: str, values: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    low, high = bootstrap_interval(values)
    difference = paired_difference(values, reference)
    measured = values[np.isfinite(values)]
    return {
        f"{measure}": float(measured.mean()) if len(measured) else float("nan"),
        f"{measure}_low": low,
        f"{measure}_high": high,
        f"{measure}_difference": difference.mean,
        f"{measure}_difference_low": difference.low,
        f"{measure}_difference_high": difference.high,
        f"{measure}_difference_p": difference.p,
    }


def _tasks_of(
    runs: Sequence[Mapping[str, Any]], tasks: Sequence[str], strategy: str
) -> dict[str, Any]:
    """Columns about single tasks, and the dose of replay."""
    difference = {}
    for measure in MEASURES:
        values = _by_task(runs, strategy, tasks, measure)
        difference[measure] = values - _by_task(runs, REFERENCE, tasks, measure)
    worst = largest_difference(tasks, difference["eval_loss_after"])
    of_strategy = [run for run in runs if run["strategy"] == strategy]
    return {
        "heldout_forgetting_tasks_lower": int((difference["heldout_forgetting"] < 0).sum()),
        "eval_loss_after_largest_difference": worst["largest_difference"],
        "eval_loss_after_largest_difference_task": worst["largest_difference_task"],
        "replayed_token_share": _mean_of_known(of_strategy, "replayed_token_share"),
        "random_in_effect": _mean_of_known(of_strategy, "random_in_effect"),
    }


def _mean_of_known(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Mean of a column over the runs that have it; NaN if none has."""
    values = np.array([run.get(key, np.nan) for run in runs], dtype=float)
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _two_level(forgetting: Mapping[RunKey, np.ndarray], strategy: str) -> dict[str, float]:
    low, high = float("nan"), float("nan")
    if strategy != REFERENCE:
        differences = paired_forgetting(forgetting, run=strategy, reference=REFERENCE)
        low, high = two_level_interval(differences)
    return {
        "heldout_forgetting_difference_two_level_low": low,
        "heldout_forgetting_difference_two_level_high": high,
    }
