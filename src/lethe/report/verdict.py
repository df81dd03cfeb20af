"""The top of the report: what was lost, what prevents it, at which price, and what made it.

One verdict per model. It states an effect in words where the numbers support it. Otherwise it
names the missing evidence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lethe.config.replay_settings import Replay, ReplayRun
from lethe.report.amounts import format_amount, format_difference, format_interval
from lethe.report.cell_predictions import METHOD, PROBES
from lethe.report.figure_style import label_of
from lethe.report.findings import Findings
from lethe.report.headlines import ENOUGH_TASKS, LEVEL, forgetting_effect
from lethe.report.run_descriptions import describe_run
from lethe.statistics import bootstrap_interval, finite_means

# Hub models have at least this many tokens; a guess among them has a loss of 10.4 nats.
SMALL_VOCABULARY = 32_000

_FORGETTING = "heldout_forgetting"
_NEW_TASK = "eval_loss_after"


@dataclass(frozen=True)
class Verdict:
    """Sentences about one model.

    Attributes
    ----------
    summary
        Forgetting, the share of it that is predicted, the share that replay takes away, and the
        loss on the new tasks. They are beside the overview figure, on the first screen of the page.
    details
        Further results of the comparison. The page has them below the figure.
    """

    summary: list[str]
    details: list[str]

    @classmethod
    def of_parts(cls, parts: Sequence["Verdict"]) -> "Verdict":
        """The sentences of several verdicts, one after the other."""
        summary = [sentence for part in parts for sentence in part.summary]
        return cls(summary, [sentence for part in parts for sentence in part.details])


def make_verdicts(findings: Findings, settings: Mapping[str, Any]) -> dict[str, Verdict]:
    """Writes the verdict of each model.

    Parameters
    ----------
    settings
        The experiment; its section `replay` gives the ratio and describes the runs.
    """
    verdicts = {}
    for model, z in findings.matrices.items():
        loss = _ignorance(findings.base_losses.get(model), settings, model)
        noise = findings.noise.get(model)
        loss.append(forgetting_effect(z, binary=findings.binary, noise=noise))
        if findings.test_tasks >= ENOUGH_TASKS:
            loss += _prediction(findings.in_domain_scores(model))
        parts = [Verdict(loss, [])]
        contrasts = findings.contrasts.get(model)
        if contrasts is not None:
            replay = Replay.model_validate(settings["replay"])
            parts.append(_prevention(contrasts, replay, binary=findings.binary))
            parts.append(_price(contrasts, findings.runs.get(model)))
            parts.append(Verdict([], _selection(contrasts, replay, binary=findings.binary)))
        verdicts[model] = Verdict.of_parts(parts)
    return verdicts


def _ignorance(
    base_losses: Mapping[str, float] | None, settings: Mapping[str, Any], model: str
) -> list[str]:
    """A sentence if the base model predicts the upstream examples no better than chance."""
    if base_losses is None:
        return []
    pretraining = settings.get("models", {}).get(model, {}).get("pretraining") or {}
    vocabulary = pretraining.get("vocabulary", SMALL_VOCABULARY)
    mean = float(finite_means(np.array(list(base_losses.values())), axis=0))
    if not mean >= np.log(vocabulary):
        return []
    return [
        f"The base model knows nothing of the upstream examples: its loss of {mean:.2f} nats is "
        f"not below that of a guess among {vocabulary} tokens, so nothing could be forgotten."
    ]


def _prediction(scores: pd.DataFrame) -> list[str]:
    """Which share of the examples that a new task damages most is predicted."""
    table = scores[(scores.k == PROBES) & (scores.metric == "top_10_percent")]
    table = table.set_index("method")
    if METHOD not in table.index:
        return []
    line = 100 * table.loc[METHOD, ["value", "low", "high"]].astype(float)
    sentence = (
        f"From {PROBES} probes of a new task, the prediction finds {line.value:.0f} % "
        f"{format_interval(line.low, line.high, '.0f')} of the tenth of the examples that it "
        "damages most"
    )
    if "column_mean" in table.index:
        means = 100 * table.loc["column_mean", "value"]
        sentence += f"; their means over other tasks find {means:.0f} %"
    return [f"{sentence} (chance: 10 %)."]


def _prevention(contrasts: pd.DataFrame, settings: Replay, *, binary: bool) -> Verdict:
    """How much of the forgetting random replay and the primary run take away."""
    planned = contrasts[contrasts.measure == _FORGETTING].set_index("question")
    if "replay" not in planned.index:
        return Verdict([], [])
    replay = planned.loc["replay"]
    without = replay.reference_mean
    if replay.tasks < ENOUGH_TASKS:
        tasks = "1 task" if replay.tasks == 1 else f"{replay.tasks:.0f} tasks"
        return Verdict([f"Replay was tested on {tasks} only, which is too few for a claim."], [])
    if without <= 0:
        return Verdict(
            ["The held-out examples were not forgotten, so there was nothing to prevent."], []
        )
    details = []
    means = {}
    if "default" in planned.index:
        default = planned.loc["default"]
        means[default.run] = default["mean"]
        details.append(_against_random_text(default, binary=binary))
    if "selection" in planned.index:
        selection = planned.loc["selection"]
        means[selection.reference] = selection.reference_mean
    means[replay.run] = replay["mean"]
    removed = []
    added = []
    for run, mean in means.items():
        if mean <= without:
            share = f"{100 * (1 - mean / without):.0f} %" if mean >= 0 else "more than all"
            removed.append(f"{share} with {_described(run, settings)}")
        else:
            more = f"{100 * (mean / without - 1):.0f} % more"
            added.append(f"With {_described(run, settings)}, they lose {more} than without replay.")
    lost = format_amount(without, binary=binary)
    tasks = f"without replay ({replay.tasks:.0f} tasks)."
    if removed:
        effect = f"{_dose(means, settings)} takes away {_enumerate(removed)} of the"
        summary = [f"{effect} {lost} that the held-out examples lose {tasks}"]
    else:
        summary = [f"The held-out examples lose {lost} {tasks}"]
    summary += added
    if planned["mean"].min() < 0:
        summary += _drift(contrasts)
    return Verdict(summary, details)


def _enumerate(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def _dose(runs: Iterable[str], settings: Replay) -> str:
    """What the runs do, as the subject of a sentence, with their ratio if it is the same."""
    by_name = _runs_by_name(settings)
    compared = [by_name[run] for run in runs if run in by_name]
    if not all(run.replays for run in compared):
        return "The change of the training"
    ratios = {run.ratio for run in compared}
    if len(ratios) != 1:
        return "Replay"
    return f"Replaying 1 example per {1 / ratios.pop():.3g} new ones"


def _runs_by_name(settings: Replay) -> dict[str, ReplayRun]:
    """Name -> settings of the runs that the tables list."""
    return {run.name: run for run in settings.results()}


def _described(run: str, settings: Replay) -> str:
    """The name of a run, with its settings if the experiment still has it."""
    by_name = _runs_by_name(settings)
    return f"{label_of(run)} ({describe_run(by_name[run])})" if run in by_name else label_of(run)


def _drift(contrasts: pd.DataFrame) -> list[str]:
    """How far held-out losses move up or down; where losses fall, their mean hides it."""
    lines = contrasts[contrasts.measure == "drift"].set_index("question")
    if "default" not in lines.index or "replay" not in lines.index:
        return []
    default = lines.loc["default"]
    without = lines.loc["replay"].reference_mean
    return [
        "A loss below the base model's is a change, too: the mean absolute change is "
        f"{default['mean']:.3f} nats with {label_of(default.run)}, "
        f"{default.reference_mean:.3f} with {label_of(default.reference)} and {without:.3f} "
        "without replay."
    ]


def _against_random_text(line: pd.Series, *, binary: bool) -> str:
    effect = format_difference(line.difference, (line.low, line.high), binary=binary)
    runs = f"{label_of(line.run)} and {label_of(line.reference)}"
    if np.isfinite(line.p_holm) and line.p_holm < LEVEL:
        return f"The difference between {runs} is {effect}."
    return f"Whether {runs} differ is not decided: {effect}."


def _price(contrasts: pd.DataFrame, runs: pd.DataFrame | None) -> Verdict:
    """What the primary run costs in new-task loss and in training time."""
    summary = []
    details = []
    lines = contrasts[(contrasts.question == "default") & (contrasts.measure == _NEW_TASK)]
    for line in lines.itertuples():
        reference = label_of(line.reference)
        price = f"The new tasks then end at a loss of {line.mean:.3f}"
        if runs is not None:
            price += _rise_over_none(runs, line.run)
        price += f", and with {reference} at {line.reference_mean:.3f}."
        summary += [price, *_seconds(runs, line.run)]
        interval = format_interval(line.low, line.high, "+z.3f")
        details.append(
            f"The loss on the new tasks differs by {line.difference:+z.3f} nats {interval} between "
            f"{label_of(line.run)} and {reference}; on the least favourable task, "
            f"{line.largest_difference_task}, by {line.largest_difference:+z.3f}."
        )
    return Verdict(summary, details)


def _rise_over_none(runs: pd.DataFrame, run: str) -> str:
    """How much higher a run's new-task loss is than without replay, with an interval over tasks."""
    losses = runs.pivot_table(index="task", columns="strategy", values=_NEW_TASK)
    if run not in losses or "none" not in losses:
        return ""
    both = losses[[run, "none"]].dropna()
    difference = (both[run] - both["none"]).to_numpy()
    interval = format_interval(*bootstrap_interval(difference), "+z.3f")
    without = both["none"].mean()
    return f", without replay at {without:.3f} ({difference.mean():+z.3f} {interval})"


def _seconds(runs: pd.DataFrame | None, run: str) -> list[str]:
    """Training time of a run as a multiple of that without replay, with an interval over tasks.

    The multiple is the geometric mean over tasks. The interval is wide if the machine was busy with
    other work during some of the runs.
    """
    if runs is None or "training_seconds" not in runs:
        return []
    seconds = runs.pivot_table(index="task", columns="strategy", values="training_seconds")
    if run not in seconds or "none" not in seconds:
        return []
    both = seconds.loc[(seconds["none"] > 0) & (seconds[run] > 0), [run, "none"]]
    if both.empty:
        return []
    logarithms = np.log(both[run] / both["none"]).to_numpy()
    interval = format_interval(*np.exp(bootstrap_interval(logarithms)), ".2f")
    times = f"{np.exp(logarithms.mean()):.2f} {interval} times as long as without replay"
    return [f"Training with {label_of(run)} took {times}."]


def _selection(contrasts: pd.DataFrame, settings: Replay, *, binary: bool) -> list[str]:
    """What it changes that examples are not drawn at random, with the same objective."""
    lines = contrasts[contrasts.question == "selection"].set_index("measure")
    if _FORGETTING not in lines.index or _NEW_TASK not in lines.index:
        return []
    effects = []
    for measure, words in ((_FORGETTING, "held-out forgetting"), (_NEW_TASK, "new-task loss")):
        line = lines.loc[measure]
        is_share = binary and measure == _FORGETTING
        effect = format_difference(line.difference, (line.low, line.high), binary=is_share)
        effects.append(f"{words} by {effect}")
    line = lines.loc[_FORGETTING]
    run = _runs_by_name(settings).get(line.run)
    choice, needs = ("", "") if run is None else _choice_of_examples(run)
    return [
        f"To choose the replayed examples{choice} ({label_of(line.run)}) instead of at random "
        f"({label_of(line.reference)}) changes {' and '.join(effects)}.{needs}"
    ]


def _choice_of_examples(run: ReplayRun) -> tuple[str, str]:
    """How a run chooses, and what that needs of the new task, as parts of a sentence."""
    if run.chooses_during_training:
        return " by prediction", " It probes the model during the training."
    if run.prediction_method == "column_mean":
        return " by prediction", " It needs no trial fine-tune."
    if run.prediction_method is not None:
        return " by prediction", " It needs a trial fine-tune."
    if run.reads_row:
        return " by their true forgetting", " It needs a finished fine-tune on the task."
    return "", ""


def describe_origin(findings: Findings, settings: Mapping[str, Any]) -> dict[str, str]:
    """Per model, the software, the device, the time and the dates that its results come from.

    The base model's file records versions, commit and device; each fine-tune records its seconds
    and its date. The date on which the page is made is not on it, so that equal results make equal
    pages.
    """
    origins = {}
    for model, versions in findings.versions.items():
        if not versions:
            continue
        commit = versions.get("commit")
        library = f"lethe {versions.get('lethe', 'of unknown version')}"
        if commit:
            library += f" (commit {commit[:10]})"
        parts = [library, *_pretrained_here(settings, model)]
        if "torch" in versions:
            parts.append(f"torch {versions['torch']}")
        if "device" in versions:
            parts.append(f"device {versions['device']}")
        parts += _job_time(findings.summaries.get(model), "fine-tunes")
        parts += _job_time(_own_fine_tunes(findings.runs.get(model)), "replay runs")
        parts += _dates(findings.summaries.get(model))
        origins[model] = ", ".join(parts)
    return origins


def _pretrained_here(settings: Mapping[str, Any], model: str) -> list[str]:
    """`pretrained here`, with the steps, for a model that this experiment has pretrained."""
    entry = settings.get("models", {}).get(model, {})
    if entry.get("source") != "scratch":
        return []
    steps = (entry.get("pretraining") or {}).get("steps")
    return [f"pretrained here ({steps} steps)" if steps else "pretrained here"]


def _own_fine_tunes(runs: pd.DataFrame | None) -> pd.DataFrame | None:
    """The replay runs that trained: no copies of rows, and several shares of one only once."""
    if runs is None:
        return None
    if "copied" in runs:
        runs = runs[runs.copied.isna()]
    if "variant" in runs:
        fine_tune = runs.variant.fillna(runs.strategy)
        runs = runs[~runs.assign(fine_tune=fine_tune).duplicated(["fine_tune", "task", "seed"])]
    return runs


def _job_time(table: pd.DataFrame | None, name: str) -> list[str]:
    """The number of jobs of a table and their time of training and scoring, if it records it."""
    if table is None or "training_seconds" not in table:
        return []
    columns = table.columns.intersection(["training_seconds", "scoring_seconds"])
    seconds = float(table[columns].sum().sum())
    time = f"{seconds:.0f} seconds" if seconds < 60 else f"{seconds / 60:.1f} minutes"
    return [f"{len(table)} {name} in {time}"]


def _dates(table: pd.DataFrame | None) -> list[str]:
    """The first and last day of the fine-tunes of a table, if it records them."""
    if table is None or "date" not in table or table.date.isna().all():
        return []
    days = sorted(table.date.dropna())
    return [f"measured on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"]
