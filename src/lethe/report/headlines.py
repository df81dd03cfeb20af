"""The headlines of the report: sentences that claim no more than the numbers support.

A headline states a result if there are enough tasks to support it. Otherwise it names the quantity
and gives its value.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lethe.matrix.forgetting_matrix import Matrix
from lethe.replay.planned_contrasts import tasks_needed
from lethe.report.amounts import format_interval
from lethe.report.figure_style import label_of
from lethe.report.findings import Findings
from lethe.report.sequence_section import sequence_headlines
from lethe.statistics import Difference, bootstrap_interval

# Level of p after Holm's correction, below which a headline calls a difference significant.
LEVEL = 0.05
# With fewer tasks, a headline names the quantity and states no effect.
ENOUGH_TASKS = 5

_FORGETTING = "heldout_forgetting"


def make_headlines(findings: Findings) -> dict[str, list[str]]:
    """Writes the headlines of each model, the largest effect of replay before the others."""
    headlines = {}
    for model, z in findings.matrices.items():
        noise = findings.noise.get(model)
        sentences = [forgetting_headline(z, binary=findings.binary, noise=noise)]
        sentences.append(rank_headline(findings.curves[model], all_tasks=len(z.tasks), noise=noise))
        sentences += completion_headlines(model, findings)
        if model in findings.comparisons:
            sentences += replay_headlines(
                findings.comparisons[model], findings.unit, findings.contrasts.get(model)
            )
        if model in findings.sequences:
            sentences += sequence_headlines(findings.sequences[model])
        headlines[model] = sentences
    return headlines


def forgetting_effect(z: Matrix, *, binary: bool, noise: Mapping[str, Any] | None = None) -> str:
    """States the mean forgetting over the tasks of Z, with its interval.

    Parameters
    ----------
    noise
        noise.json; None if no fine-tune was repeated. A mean that is not above the standard
        deviation of a cell between training seeds is named, and not called an effect.
    """
    means = _task_means(z)
    mean = float(means.mean())
    if binary:
        return _lost_answers(mean)
    sigma = None if noise is None else noise["sigma"]["training"]
    if sigma is not None and abs(mean) <= sigma:
        return (
            f"Mean change of the upstream loss: {mean:+z.3f} nats, which is not above the noise of "
            f"repeated fine-tunes ({sigma:.3f} nats per cell)."
        )
    return _change_of_loss(mean, bootstrap_interval(means), len(means))


def forgetting_headline(z: Matrix, *, binary: bool, noise: Mapping[str, Any] | None = None) -> str:
    """States the mean forgetting over the tasks of Z, with its interval and extremes."""
    effect = forgetting_effect(z, binary=binary, noise=noise)
    tasks = np.array(z.tasks)[np.isfinite(z.values).any(axis=1)]
    means = _task_means(z)
    examples = int(np.isfinite(z.values).any(axis=0).sum())
    least = int(means.argmin())
    most = int(means.argmax())
    return (
        f"{effect} Mean over {_count(len(tasks), 'task')} and {examples} upstream examples; by "
        f"task from {means[least]:.3f} ({tasks[least]}) to {means[most]:.3f} ({tasks[most]})."
    )


def _task_means(z: Matrix) -> np.ndarray:
    """Mean forgetting of every task that has a value."""
    measured = np.isfinite(z.values).any(axis=1)
    return np.nanmean(z.values[measured].astype(np.float64), axis=1)


def _lost_answers(mean: float) -> str:
    return f"Fine-tuning lost {100 * mean:.1f} % of the base model's right answers on average."


def _change_of_loss(mean: float, interval: tuple[float, float], tasks: int) -> str:
    low, high = interval
    if tasks < ENOUGH_TASKS or not np.isfinite(low):
        return f"Mean change of the upstream loss: {mean:+z.3f} nats."
    if low <= 0 <= high:
        bounds = format_interval(low, high, "+.3f")
        return f"Mean change of the upstream loss: {mean:+z.3f} nats {bounds}, which includes zero."
    if mean < 0:
        bounds = format_interval(-high, -low, ".3f")
        return f"Upstream loss fell by {-mean:.3f} nats {bounds}: nothing was forgotten on average."
    bounds = format_interval(low, high, ".3f")
    less_probable = 100 * (1 - np.exp(-mean))
    return (
        f"Upstream loss rose by {mean:.3f} nats {bounds} on average, which makes each token "
        f"{less_probable:.0f} % less probable."
    )


def rank_headline(
    curve: pd.DataFrame, *, all_tasks: int, noise: Mapping[str, Any] | None = None
) -> str:
    """Gives R² of Z at a few ranks, next to the means of tasks and examples.

    If fine-tunes were repeated, it also gives the number of components above shuffled rows. If the
    curve is that of some of the tasks only, it says so.
    """
    values = rank_values(curve)
    tasks = _count(all_tasks, "task")
    # Tables of earlier versions do not say how many tasks they are of.
    if "tasks" in curve and (measured := int(curve.tasks.max())) < all_tasks:
        tasks = f"{measured} of {tasks}; the others share no example with all of them"
    above = ""
    if noise is not None:
        count = _count(noise["rank_above"]["shuffled_rows"], "component")
        above = f" Against shuffled rows, {count} of Z can be told from chance."
    at_ranks = []
    for key in ("rank 1", "rank 3", "rank 5"):
        if key in values:
            at_ranks.append(f"{values[key]:.2f} at {key}")
    return (
        f"R² of low-rank approximations of Z ({tasks}): {', '.join(at_ranks)}; "
        f"task means plus example means: {values['additive']:.2f}.{above}"
    )


def rank_values(curve: pd.DataFrame) -> dict[str, float]:
    """R² at a few ranks, and of the predictors without factors, from a table of rank_curve.csv."""
    svd = curve[curve.predictor == "svd"].set_index("rank").r2
    values = {f"rank {rank}": float(svd[rank]) for rank in (1, 2, 3, 5, 8) if rank in svd.index}
    others = curve[~curve.predictor.isin(["svd", "logistic_mf"])]
    for name, r2 in zip(others.predictor, others.r2, strict=True):
        values[name.replace("_", " ")] = float(r2)
    return values


def completion_headlines(model: str, findings: Findings) -> list[str]:
    """Gives the precision of predicted forgetting on in-domain test tasks.

    The mean of the task and of its domains, and the most forgotten tenth, come first. The error
    of single examples follows, lowest error first.
    """
    table = findings.in_domain_scores(model)
    errors = table[table.metric == "rmse"]
    if errors.empty:
        return []
    counts = sorted(errors.k.unique())
    probes = 30 if 30 in counts else counts[-1]
    tasks = findings.test_tasks
    rmse = errors[errors.k == probes].set_index("method")
    best = rmse.value.idxmin()
    others = []
    for name in ("column_mean", "additive", "knn", "mf"):
        if name in rmse.index and name != best:
            others.append(f"{label_of(name)} {rmse.value[name]:.3f}")
    compared = f"; {', '.join(others)}" if others else ""
    interval = format_interval(rmse.low[best], rmse.high[best], ".3f")
    return [
        *_means_headlines(table[table.k == probes], findings.unit, probes=probes, tasks=tasks),
        f"Error of forgetting predicted from {_count(probes, 'probe')} of an unseen task (RMSE, "
        f"{_count(tasks, 'test task')}): {rmse.value[best]:.3f} {findings.unit} {interval} with "
        f"{label_of(best)}, the lowest of {_count(len(rmse), 'method')}{compared}.",
    ]


def _means_headlines(table: pd.DataFrame, unit: str, *, probes: int, tasks: int) -> list[str]:
    """Precision of means and of the most forgotten tenth; none in tables of earlier versions."""
    of_method = table[table.method == "gaussian"].set_index("metric")
    values = of_method.value
    headlines = []
    subjects = (("task_mean", "an unseen task"), ("domain_mean", "the domains of an unseen task"))
    for key, subject in subjects:
        error = values.get(f"{key}_error", float("nan"))
        width = values.get(f"{key}_width_90", float("nan"))
        if np.isfinite([error, width]).all():
            share = 100 * values[f"{key}_coverage_90"]
            line = of_method.loc[f"{key}_error"]
            interval = format_interval(line.low, line.high, ".3f")
            headlines.append(
                f"Mean forgetting of {subject}, predicted from {_count(probes, 'probe')}: off by "
                f"{error:.3f} {unit} {interval} on average ({_count(tasks, 'test task')}). The "
                f"90 % intervals are {width:.3f} {unit} wide and contain {share:.0f} % of the "
                "means."
            )
    if headlines and "top_10_percent" in values:
        share = 100 * values["top_10_percent"]
        headlines.append(
            f"The predicted tenth holds {share:.0f} % of the examples in the tenth that is most "
            "forgotten (10 % by chance)."
        )
    return headlines


def replay_headlines(
    comparison: pd.DataFrame, unit: str, contrasts: pd.DataFrame | None = None
) -> list[str]:
    """Compares the replay runs of one model by their held-out forgetting.

    Planned comparisons come first, with random replay against no replay before the others. All
    other runs are compared with random replay; beside planned comparisons, these are exploratory.

    Parameters
    ----------
    comparison
        replay_comparison.csv.
    contrasts
        replay_contrasts.csv; None if the experiment plans no comparison.
    """
    lines = comparison.set_index("strategy")
    planned = pd.DataFrame(columns=["run"])
    if contrasts is not None:
        planned = contrasts[(contrasts.status == "planned") & (contrasts.measure == _FORGETTING)]
    headlines = [_planned_headline(line, unit, len(planned)) for line in planned.itertuples()]
    others = len(lines) - 1
    if planned.empty and "none" in lines.index:
        headlines.append(_random_headline(lines, unit, others))
    prefix = "" if planned.empty else "Exploratory: "
    excluded = ["none", "random", *planned.run]
    for name in lines.index.difference(excluded, sort=False):
        headline = _strategy_headline(lines, name, unit=unit, comparisons=others)
        headlines.append(prefix + headline)
    return headlines


def _planned_headline(line: Any, unit: str, comparisons: int) -> str:
    """One line of replay_contrasts.csv as a sentence."""
    difference = Difference(mean=line.difference, low=line.low, high=line.high, p=line.p_holm)
    values = (
        f"{_replay_of(line.run)}: {line.mean:.3f} vs {line.reference_mean:.3f} {unit} "
        f"{_against(line.reference)}"
    )
    return _comparison(
        values,
        reference=line.reference_mean,
        difference=difference,
        tasks=int(line.tasks),
        tasks_lower=int(line.tasks_lower),
        comparisons=comparisons,
    )


def _random_headline(lines: pd.DataFrame, unit: str, comparisons: int) -> str:
    none = lines.loc["none"]
    # The table has no replay minus random replay; the sentence needs the opposite sign.
    difference = Difference(
        mean=-none[f"{_FORGETTING}_difference"],
        low=-none[f"{_FORGETTING}_difference_high"],
        high=-none[f"{_FORGETTING}_difference_low"],
        p=none[f"{_FORGETTING}_difference_p_holm"],
    )
    random = lines[_FORGETTING]["random"]
    values = f"Random replay: {random:.3f} vs {none[_FORGETTING]:.3f} {unit} without replay"
    return _comparison(
        values,
        reference=none[_FORGETTING],
        difference=difference,
        tasks=int(none.tasks),
        comparisons=comparisons,
    )


def _strategy_headline(lines: pd.DataFrame, name: str, *, unit: str, comparisons: int) -> str:
    line = lines.loc[name]
    difference = Difference(
        mean=line[f"{_FORGETTING}_difference"],
        low=line[f"{_FORGETTING}_difference_low"],
        high=line[f"{_FORGETTING}_difference_high"],
        p=line[f"{_FORGETTING}_difference_p_holm"],
    )
    reference = lines[_FORGETTING]["random"]
    return _comparison(
        f"{_replay_of(name)}: {line[_FORGETTING]:.3f} vs {reference:.3f} {unit} for random",
        reference=reference,
        difference=difference,
        tasks=int(line.tasks),
        comparisons=comparisons,
    )


def _replay_of(name: str) -> str:
    """The name of a replay run at the beginning of a sentence."""
    label = label_of(name)
    return f"{label[0].upper()}{label[1:]} replay"


def _against(name: str) -> str:
    return "without replay" if name == "none" else f"for {label_of(name)}"


def _comparison(
    values: str,
    *,
    reference: float,
    difference: Difference,
    tasks: int,
    comparisons: int,
    tasks_lower: int | None = None,
) -> str:
    """Completes a sentence on the held-out forgetting of two runs by effect and test."""
    needed = tasks_needed(comparisons)
    untestable = f"No test possible: only {_count(tasks, 'test task')} (at least {needed} needed)."
    if tasks < ENOUGH_TASKS:
        return f"Held-out forgetting. {values}. {untestable}"
    # Equal values on every task have no p either, but not for lack of tasks.
    if difference.low == difference.high == 0:
        return f"{values} (the same on each of {_count(tasks, 'test task')})."
    change = f"{100 * difference.mean / reference:+.0f} %; " if reference > 0 else ""
    interval = format_interval(difference.low, difference.high, "+.3f")
    counted = "" if tasks_lower is None else f"lower on {tasks_lower} of "
    effect = f"{change}difference {difference.mean:+z.3f} {interval}; {counted}{tasks} test tasks"
    if tasks < needed:
        return f"{values} ({effect}). {untestable}"
    return f"{values} ({effect}; {_significance(difference)})."


def _significance(difference: Difference) -> str:
    if not np.isfinite([difference.low, difference.high, difference.p]).all():
        return "not tested, because values are missing"
    # Each interval alone misses the true value in 5 percent of cases. With several strategies, one
    # interval is likely to exclude zero by chance, so p is corrected for their number.
    excludes_zero = difference.low > 0 or difference.high < 0
    significant = difference.p < LEVEL and excludes_zero
    word = "significant" if significant else "not significant"
    return f"{word}, {format_p(difference.p)}"


def format_p(p: float) -> str:
    """Writes a p-value as in a paper: `p = .012`, or `p < .001`."""
    if p < 0.001:
        return "p < .001"
    text = f"{p:.2g}"
    if p < LEVEL <= float(text):
        # Rounding must not move p across the level.
        text = f"{p:.3g}"
        if float(text) >= LEVEL:
            return "p < .05"
    return f"p = {text.removeprefix('0')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
