"""The comparisons that an experiment plans before it is run, and whether they can be decided.

Every comparison of strategies has a p-value, and with many of them one is small by chance. So the
questions are fixed beforehand, their p-values are corrected over these few only (Holm), and all
others are exploratory. `lethe.replay.contrast_tests` tests them. This module needs neither numpy
nor scipy, because the workflow imports it in every job.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lethe.config.replay_settings import (
    BUILT_ON_PREDICTION,
    DURING_TRAINING,
    OBJECTIVES,
    OWN_SETTINGS,
    PREDICTION_METHODS,
    WITH_SIBLING,
    Replay,
    ReplayRun,
)
from lethe.config.task_table import Task

# Wilcoxon's test of fewer pairs gives no p-value here.
_FEWEST_TASKS = 3
# Two runs give a line, not a curve.
_FEWEST_RUNS = 3


@dataclass(frozen=True)
class Contrast:
    """One planned comparison: is `run` better than `reference`? Both are names of runs."""

    question: str
    run: str
    reference: str


def plan_contrasts(replay: Replay) -> list[Contrast]:
    """The planned comparisons of an experiment, in the order of their importance.

    - `replay`: random text replay against no replay (random replay, if no run replays text).
    - `default`: the primary run against random text replay.
    - `selection`: the primary run against random replay with the same objective and dose.

    Comparisons whose runs the experiment does not have are left out, and so is one of a run with
    itself.
    """
    runs = {run.name: run for run in replay.results()}
    primary = primary_run(replay)
    text = _random_text(runs, runs.get(primary) if primary is not None else None)
    pairs = []
    if "none" in runs:
        pairs.append(Contrast("replay", text, "none"))
    if primary is not None:
        same = _random_counterpart(runs, runs[primary])
        if text != same:
            pairs.append(Contrast("default", primary, text))
        if same is not None:
            pairs.append(Contrast("selection", primary, same))
    return [pair for pair in pairs if pair.run != pair.reference]


def primary_run(replay: Replay) -> str | None:
    """Name of the run that the planned comparisons test; None if no strategy predicts."""
    if replay.primary is not None:
        return replay.primary
    if "gaussian" in replay.strategies:
        return "gaussian"
    predicting = (*PREDICTION_METHODS, WITH_SIBLING, *BUILT_ON_PREDICTION, *DURING_TRAINING)
    names = [name for name in replay.strategies if name in predicting]
    return names[0] if names else None


def _random_text(runs: Mapping[str, ReplayRun], primary: ReplayRun | None) -> str:
    """Name of the run of random replay with cross-entropy, as in the paper; else `random`.

    Among several the one whose replayed tokens count as new ones (dose `mixed`, or weight 1) and
    whose ratio is the primary run's comes first.
    """
    candidates = []
    for run in runs.values():
        unchanged = not run.recipe_changes and run.interpolate is None
        if run.strategy == "random" and run.objective == "text" and unchanged:
            other_weight = run.dose != "mixed" and run.weight != 1
            other_ratio = primary is not None and run.ratio != primary.ratio
            candidates.append((other_weight, other_ratio, len(candidates), run.name))
    return min(candidates)[-1] if candidates else "random"


def _random_counterpart(runs: Mapping[str, ReplayRun], primary: ReplayRun) -> str | None:
    """Name of the run that differs from the primary one in the choice of examples only."""
    choice = {"name", "strategy", "draw", "temperature", "prediction"}
    choice |= {"probes", "probe_choice", "probe_after"}
    for settings_of_strategy in OWN_SETTINGS.values():
        choice |= settings_of_strategy.keys()
    settings = primary.model_dump(exclude=choice)
    for run in runs.values():
        if run.strategy == "random" and run.model_dump(exclude=choice) == settings:
            return run.name
    return None


def frontier_runs(
    replay: Replay, measured: Collection[str] | None = None, by_ratio: bool = True
) -> dict[str, list[str]]:
    """Names of the runs that draw the curve of random replay, by objective.

    A frontier is no replay and all runs of random replay with one objective. They differ in
    ratio, weight, accounting or teacher, and not in the recipe. `lethe.replay.frontier` measures
    the distance of other runs to it.

    Runs with `dose: step` are a frontier of their own (`kl, step`), or the others are (`kl, token`)
    where `replay.dose` is `step`. With `step`, tasks of short answers pay for those of long ones,
    which a mean over tasks does not show. Dose `mixed` is `token` with weight 1.

    If the ratios differ, those of one ratio are a frontier of their own, such as `kl, 1 in 8`:
    a run that replays more examples forgets less, but trains for longer.

    Parameters
    ----------
    measured
        Names of the runs that there are; None: all of the experiment.
    by_ratio
        Whether the frontiers of single ratios are wanted, too.

    Returns
    -------
    Frontier -> names; only frontiers of at least three runs, because two give no curve.
    """
    runs = [run for run in replay.results() if not run.recipe_changes and run.interpolate is None]
    if measured is not None:
        runs = [run for run in runs if run.name in measured]
    unreplayed = [run for run in runs if not run.replays]
    frontiers = {}
    for objective in OBJECTIVES:
        random = [run for run in runs if run.strategy == "random" and run.objective == objective]
        drawn = [run for run in random if _by_step(run) == _by_step(replay)]
        others = [run for run in random if _by_step(run) != _by_step(replay)]
        other_dose = "token" if _by_step(replay) else "step"
        curves = {objective: drawn, f"{objective}, {other_dose}": others}
        ratios = sorted({run.ratio for run in drawn})
        if by_ratio and len(ratios) > 1:
            for ratio in ratios:
                of_ratio = [run for run in drawn if run.ratio == ratio]
                curves[_name_of_ratio(objective, ratio)] = of_ratio
        for name, curve in curves.items():
            names = [run.name for run in (*unreplayed, *curve)]
            if len(names) >= _FEWEST_RUNS:
                frontiers[name] = names
    return frontiers


def _by_step(settings: Replay | ReplayRun) -> bool:
    """Whether every step has a replay term of its own."""
    return settings.dose == "step"


def runs_by_frontier(replay: Replay, frontiers: Collection[str]) -> dict[str, list[str]]:
    """Frontier of one ratio -> names of all runs that replay with this ratio."""
    runs: dict[str, list[str]] = {}
    for run in replay.results():
        for objective in OBJECTIVES:
            name = _name_of_ratio(objective, run.ratio)
            if run.replays and name in frontiers:
                runs.setdefault(name, []).append(run.name)
    return runs


def _name_of_ratio(objective: str, ratio: float) -> str:
    return f"{objective}, 1 in {1 / ratio:.4g}"


def least_p(tasks: int, contrasts: int) -> float:
    """The smallest corrected p-value that the planned comparisons can reach.

    If all tasks differ in the same direction, Wilcoxon's two-sided signed-rank test gives
    2 / 2^tasks, and Holm multiplies the smallest of the p-values by their number.

    Returns
    -------
    At most 1; NaN with fewer than three tasks, which are not tested.
    """
    if tasks < _FEWEST_TASKS:
        return math.nan
    return min(1.0, contrasts * 2.0 ** (1 - tasks))


def tasks_needed(contrasts: int, level: float = 0.05) -> int:
    """Number of test tasks from which on `contrasts` planned comparisons can be significant."""
    tasks = _FEWEST_TASKS
    while least_p(tasks, contrasts) > level:
        tasks += 1
    return tasks


def least_p_sentence(tasks: int, contrasts: int, level: float = 0.05) -> str:
    """Says before the run whether its planned comparisons can be decided.

    Parameters
    ----------
    tasks
        Number of tasks that replay is tested on.
    contrasts
        Number of planned comparisons.
    """
    comparisons = "1 planned comparison" if contrasts == 1 else f"{contrasts} planned comparisons"
    of_tasks = "1 test task" if tasks == 1 else f"{tasks} test tasks"
    needed = tasks_needed(contrasts, level)
    if tasks < _FEWEST_TASKS:
        return f"replay: no test is possible with {of_tasks}; {comparisons} need at least {needed}"
    least = f"p = {least_p(tasks, contrasts):.2g}"
    return (
        f"replay: {of_tasks} can reach {least} at best over {comparisons}; p < {level:g} needs at "
        f"least {needed} tasks"
    )


def decision_sentence(replay: Replay, tasks: Mapping[str, Task]) -> str:
    """Says whether an experiment's planned comparisons can be decided, before anything is run.

    Returns
    -------
    One sentence; empty if the experiment plans no comparison.
    """
    contrasts = plan_contrasts(replay)
    if not contrasts:
        return ""
    tested = len(replay.tested_tasks(tasks))
    sentence = least_p_sentence(tested, len(contrasts))
    if tested < tasks_needed(len(contrasts)) and tested < len(tasks):
        sentence += f" (replay.tasks: all makes all {len(tasks)} tasks test tasks)"
    return sentence
