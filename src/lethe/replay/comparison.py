"""Compares replay strategies on held-out upstream examples (protocol 2.2, step 9)."""

from collections.abc import Sequence

import numpy as np

from lethe.statistics import bootstrap_interval, holm, paired_difference

# What is compared: lower is better for both.
MEASURES = ("heldout_forgetting", "eval_loss_after")


def compare(runs: Sequence[dict]) -> list[dict]:
    """One line a strategy: means over tasks, and paired differences to random replay.

    Parameters
    ----------
    runs
        Dicts with strategy, task, seed, heldout_forgetting, eval_loss_after (nats).

    Returns
    -------
    Lines of replay_comparison.csv: strategy, tasks, seeds; for each measure its mean with a 95
    percent interval over tasks, the mean difference to `random` on the same task (seeds averaged)
    with its interval, Wilcoxon's p and p corrected by Holm over the strategies.
    """
    strategies = list(dict.fromkeys(run["strategy"] for run in runs))
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    lines = [
        {
            "strategy": strategy,
            "tasks": len(tasks),
            "seeds": len({run["seed"] for run in runs}),
        }
        for strategy in strategies
    ]
    for measure in MEASURES:
        means = {s: _by_task(runs, s, tasks, measure) for s in strategies}
        for line in lines:
            line |= _measured(measure, means[line["strategy"]], means["random"])
        corrected = [line for line in lines if line["strategy"] != "random"]
        p = holm(np.array([line[f"{measure}_difference_p"] for line in corrected]))
        for line, value in zip(corrected, p, strict=True):
            line[f"{measure}_difference_p_holm"] = float(value)
    return lines


def _by_task(runs: Sequence[dict], strategy: str, tasks: list[str], measure: str) -> np.ndarray:
    """Mean over seeds (tasks,) of one strategy."""
    found = {
        task: [run[measure] for run in runs if (run["strategy"], run["task"]) == (strategy, task)]
        for task in tasks
    }
    return np.array([np.mean(found[task]) for task in tasks])


def _measured(measure: str, values: np.ndarray, reference: np.ndarray) -> dict:
    low, high = bootstrap_interval(values)
    difference = paired_difference(values, reference)
    return {
        f"{measure}": float(np.nanmean(values)),
        f"{measure}_low": low,
        f"{measure}_high": high,
        f"{measure}_difference": difference.mean,
        f"{measure}_difference_low": difference.low,
        f"{measure}_difference_high": difference.high,
        f"{measure}_difference_p": difference.p,
    }
