"""The last part of the story at the top of the report: what to do next, as far as the data show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lethe.report.amounts import format_difference
from lethe.report.figure_style import label_of
from lethe.report.findings import Findings
from lethe.report.headlines import LEVEL
from lethe.statistics import finite_means

_FORGETTING = "heldout_forgetting"
_NEW_TASK = "eval_loss_after"


@dataclass(frozen=True)
class WorstTask:
    """The task that makes a model forget most, for a link into the example browser."""

    model: str
    task: str
    forgetting: float


def suggest_steps(findings: Findings) -> list[str]:
    """Suggests what to do, one sentence per step and model; a claim needs a significant test."""
    steps = []
    for model in findings.matrices:
        if findings.comparisons:
            contrasts = findings.contrasts.get(model)
            steps.append(f"{model}: {_replay_step(contrasts, binary=findings.binary)}")
        step = _probe_step(findings.in_domain_scores(model), findings.unit)
        if step:
            steps.append(f"{model}: {step}")
    if findings.summaries and not findings.comparisons:
        steps.append(
            "Add a section replay to the experiment to measure what prevents this forgetting."
        )
    return steps


def find_worst_tasks(findings: Findings) -> list[WorstTask]:
    """For each model, the task with the largest mean forgetting among those with a value."""
    worst = []
    for model, z in findings.matrices.items():
        measured = np.isfinite(z.values).any(axis=1)
        if not measured.any():
            continue
        means = np.where(measured, finite_means(z.values, axis=1), -np.inf)
        row = int(means.argmax())
        worst.append(WorstTask(model=model, task=z.tasks[row], forgetting=float(means[row])))
    return worst


def _replay_step(contrasts: pd.DataFrame | None, *, binary: bool) -> str:
    """Which replay to use, from the planned comparisons of held-out forgetting."""
    planned: Mapping[str, Any] = {}
    new_task: Mapping[str, Any] = {}
    if contrasts is not None:
        planned = _by_question(contrasts, _FORGETTING)
        new_task = _by_question(contrasts, _NEW_TASK)
    default = planned.get("default")
    if default is not None and _is_lower(default):
        run = label_of(default.run)
        step = f"replay with {run}, which forgets less than {label_of(default.reference)}."
        selection = planned.get("selection")
        if selection is not None and selection.run == default.run:
            step += (
                f" {label_of(selection.reference)} needs no trial fine-tune; it differs by "
                f"{format_difference(-selection.difference, binary=binary)} in forgetting"
            )
            if "selection" in new_task:
                loss = format_difference(-new_task["selection"].difference, binary=False)
                step += f" and {loss} in new-task loss"
            step += "."
        return step
    replay = planned.get("replay")
    if replay is not None and _is_lower(replay):
        return (
            f"replay with {label_of(replay.run)}. It forgets less than no replay, and no other "
            "planned run is shown to be better."
        )
    return "no replay run is shown to prevent forgetting; measure it on more test tasks."


def _by_question(contrasts: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The comparisons of one measure by their question."""
    lines = contrasts[contrasts.measure == measure]
    return {line.question: line for line in lines.itertuples()}


def _is_lower(line: Any) -> bool:
    return bool(np.isfinite(line.p_holm) and line.p_holm < LEVEL and line.difference < 0)


def _probe_step(scores: pd.DataFrame, unit: str) -> str | None:
    """How few probes of a new task predict its mean forgetting; None in earlier tables."""
    errors = scores[(scores.metric == "task_mean_error") & (scores.method == "gaussian")]
    if errors.empty:
        return None
    probes = 30 if 30 in set(errors.k) else errors.k.max()
    error = errors[errors.k == probes].value.iloc[0]
    count = "1 probe" if probes == 1 else f"{probes} probes"
    return (
        f"to know what a new task will damage, measure {count} of it after a trial fine-tune. "
        f"They predict its mean forgetting with an error of {error:.3f} {unit} on average."
    )
