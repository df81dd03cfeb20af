"""Tests the planned comparisons of replay runs over tasks, seeds and held-out examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lethe.analysis.rises import RunKey
from lethe.replay.planned_contrasts import Contrast, least_p
from lethe.replay.two_level import two_level_interval
from lethe.statistics import holm, paired_difference

# The measure that the planned comparisons are about, and those that are read beside it.
PRIMARY_MEASURE = "heldout_forgetting"
SECONDARY_MEASURES = (
    "worst_domain_forgetting",
    "eval_loss_after",
    "drift",
    "rise_share",
    "rise_mean",
    "heldout_kl",
)


def compare_planned(
    runs: Sequence[Mapping[str, Any]],
    contrasts: Sequence[Contrast],
    forgetting: Mapping[RunKey, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Tests the planned comparisons; the records of replay_contrasts.csv.

    Parameters
    ----------
    runs
        Records of replay.csv.
    contrasts
        The planned comparisons.
    forgetting
        Forgetting (n,) of the held-out examples by run, for intervals over tasks and examples.

    Returns
    -------
    One record per comparison and measure: question, run, reference, measure, status (`planned`
    for held-out forgetting, else `secondary`), tasks, seeds, the means of both, the mean
    difference on the same task (seeds averaged) with its interval over tasks and, for held-out
    forgetting, its interval over tasks and examples, the number of tasks with a lower value, the
    task of the largest difference and that difference, p, p corrected over the comparisons of this
    measure (Holm), and the least p that so many tasks can reach.
    """
    measures = [PRIMARY_MEASURE]
    measures += [name for name in SECONDARY_MEASURES if all(name in run for run in runs)]
    records = []
    for measure in measures:
        of_measure = []
        for contrast in contrasts:
            record = _compare(runs, contrast, measure, len(contrasts))
            if measure == PRIMARY_MEASURE and forgetting is not None:
                record |= _two_level(contrast, forgetting)
            of_measure.append(record)
        p_values = np.array([record["p"] for record in of_measure])
        corrected = holm(p_values, comparisons=len(contrasts))
        for record, p in zip(of_measure, corrected, strict=True):
            record["p_holm"] = float(p)
        records += of_measure
    return records


def mean_by_task(
    runs: Sequence[Mapping[str, Any]], strategy: str, measure: str
) -> dict[str, float]:
    """Mean over seeds of a measure by task, for the runs of one name.

    A seed with which no loss rises has no mean rise (NaN); that of a task is over its other seeds.
    """
    values: dict[str, list[float]] = {}
    for run in runs:
        if run["strategy"] != strategy or (measure == "rise_mean" and np.isnan(run[measure])):
            continue
        values.setdefault(run["task"], []).append(run[measure])
    return {task: float(np.mean(of_task)) for task, of_task in values.items()}


def _compare(
    runs: Sequence[Mapping[str, Any]], contrast: Contrast, measure: str, contrasts: int
) -> dict[str, Any]:
    values = mean_by_task(runs, contrast.run, measure)
    reference = mean_by_task(runs, contrast.reference, measure)
    tasks = [task for task in values if task in reference]
    one = np.array([values[task] for task in tasks])
    other = np.array([reference[task] for task in tasks])
    difference = paired_difference(one, other)
    both = np.isfinite(one - other)
    tested = int(both.sum())
    record = {
        "question": contrast.question,
        "run": contrast.run,
        "reference": contrast.reference,
        "measure": measure,
        "status": "planned" if measure == PRIMARY_MEASURE else "secondary",
        "tasks": tested,
        "seeds": len({run["seed"] for run in runs if run["strategy"] == contrast.run}),
        "mean": float(one[both].mean()) if tested else float("nan"),
        "reference_mean": float(other[both].mean()) if tested else float("nan"),
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "tasks_lower": int((one < other).sum()),
        "p": difference.p,
        "least_p": least_p(tested, contrasts),
    }
    return record | largest_difference(tasks, one - other)


def largest_difference(tasks: Sequence[str], differences: np.ndarray) -> dict[str, Any]:
    """The task that a run serves worst: the largest of the differences (tasks,) and its task.

    Among equal differences the task whose name comes first is named.
    """
    if not np.isfinite(differences).any():
        return {"largest_difference": float("nan"), "largest_difference_task": ""}
    largest = float(np.nanmax(differences))
    equal = [task for task, value in zip(tasks, differences, strict=True) if value == largest]
    return {"largest_difference": largest, "largest_difference_task": min(equal)}


def _two_level(contrast: Contrast, forgetting: Mapping[RunKey, np.ndarray]) -> dict[str, float]:
    low, high = two_level_interval(
        paired_forgetting(forgetting, run=contrast.run, reference=contrast.reference)
    )
    return {"two_level_low": low, "two_level_high": high}


def paired_forgetting(
    forgetting: Mapping[RunKey, np.ndarray], *, run: str, reference: str
) -> np.ndarray:
    """Differences in forgetting (tasks, seeds, examples) between two runs of the same seed.

    A task or seed that one of the two lacks is NaN throughout.
    """
    keys = [key for key in forgetting if key.strategy == run]
    tasks = list(dict.fromkeys(key.task for key in keys))
    seeds = sorted({key.seed for key in keys})
    examples = len(forgetting[keys[0]]) if keys else 0
    differences = np.full((len(tasks), len(seeds), examples), np.nan)
    for key in keys:
        other = RunKey(strategy=reference, task=key.task, seed=key.seed)
        if other in forgetting:
            row = tasks.index(key.task)
            column = seeds.index(key.seed)
            differences[row, column] = forgetting[key] - forgetting[other]
    return differences
