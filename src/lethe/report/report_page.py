"""One self-contained HTML page of everything an experiment found."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

import lethe
from lethe.analysis import transfer
from lethe.report.findings import Findings
from lethe.report.plots import LABELS

# Of Holm's corrected p, below which a headline says that a strategy is better or worse.
SIGNIFICANT = 0.05

CAPTIONS = {
    "heatmap": "Z. A row is a fine-tuning task, a column an upstream example (by domain, then by "
    "mean forgetting). Red: it was forgotten. Colours are cut at the 98th percentile.",
    "forgetting_by_task": "Left: what each fine-tune forgot on average. Right: how much its own "
    "task's loss fell; a fine-tune near 0 there learned nothing.",
    "spectrum": "Squares of the singular values of Z as shares of their sum.",
    "rank_curves": "R² of the best approximation of Z of each rank (uncentred SVD, centred "
    "denominator). Dotted: task mean plus example mean, no factors.",
    "completion": "Error of the predicted forgetting over unprobed examples of tasks not seen "
    "before. Bands: 95 percent bootstrap intervals over tasks. In-domain: the task table's test "
    "tasks. Out-of-domain: each group of tasks predicted from the other groups.",
    "replay": "Left: mean forgetting of held-out upstream examples, which no strategy may replay. "
    "Right: difference to random replay on the same tasks. Bars: 95 percent intervals over tasks, "
    "each by itself; the table has p corrected for the number of strategies.",
}


def page(findings: Findings, figures: Mapping[str, bytes], settings: dict[str, Any]) -> str:
    """The page as HTML. All text from data is escaped; images are inside it.

    Parameters
    ----------
    figures
        PNG images by name, as in `lethe.report.plots.FIGURES`.
    settings
        The experiment, shown in full.
    """
    environment = Environment(
        loader=PackageLoader("lethe.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["number"] = _number
    images = {name: base64.b64encode(png).decode() for name, png in figures.items()}
    return environment.get_template("report.html.j2").render(
        name=settings["experiment"],
        binary=findings.binary,
        unit=findings.unit,
        headlines=headlines(findings),
        images=images,
        captions=CAPTIONS,
        labels=LABELS,
        summaries={model: _records(table) for model, table in findings.summaries.items()},
        problems=_problems(findings),
        curves={model: _rank_line(curve) for model, curve in findings.curves.items()},
        described={model: _f1_line(curve) for model, curve in findings.curves.items()},
        completions={model: _scores(table) for model, table in findings.completions.items()},
        comparisons={model: _records(table) for model, table in findings.comparisons.items()},
        associations={model: _records(table) for model, table in findings.associations.items()},
        transfer=_transfer(findings),
        forgotten=most_forgotten(findings),
        settings=json.dumps(settings, indent=1),
        version=lethe.__version__,
    )


def _transfer(findings: Findings) -> list[dict]:
    return [] if findings.transfer is None else transfer.table(_records(findings.transfer))


def _number(value: Any, digits: int = 3) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.{digits}f}"


def _records(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def _rank_line(curve: pd.DataFrame) -> dict[str, float]:
    svd = curve[curve.predictor == "svd"].set_index("rank").r2
    ranks = {f"rank {rank}": float(svd[rank]) for rank in (1, 2, 3, 5, 8) if rank in svd.index}
    others = curve[~curve.predictor.isin(["svd", "logistic_mf"])].set_index("predictor").r2
    return ranks | {name.replace("_", " "): float(value) for name, value in others.items()}


def _f1_line(curve: pd.DataFrame) -> dict[str, float]:
    """F1 of a binary Z by the rank of its logistic factors; empty for other Zs."""
    if "f1" not in curve:
        return {}
    f1 = curve[curve.predictor == "logistic_mf"].set_index("rank").f1
    return {f"rank {rank}": float(value) for rank, value in f1.items()}


def _scores(table: pd.DataFrame) -> list[dict]:
    """One line a split, method and k: every metric with its interval."""
    chosen = table[(table.seed.astype(str) == "all") & (table.probes == "random")]
    lines = []
    for (split, method, k), part in chosen.groupby(["split", "method", "k"], sort=False):
        metrics = {line["metric"]: line for line in _records(part)}
        lines.append({"split": split, "method": method, "k": k, "metrics": metrics})
    return lines


def _problems(findings: Findings) -> list[str]:
    """What a reader should know before trusting the numbers."""
    found = [
        f"{model}: {warning}"
        for model, seen in findings.sanity.items()
        for warning in seen["warnings"]
    ]
    for model, table in findings.summaries.items():
        idle = table[table.eval_loss_after >= table.eval_loss_before].task.tolist()
        if idle:
            found.append(f"{model}: fine-tuning did not lower the own eval loss of {idle}.")
        first = table.iloc[0]
        if first.truncated:
            found.append(f"{model}: {int(first.truncated)} upstream examples were cut to length.")
        for key, text in (("missing", "upstream losses"), ("eval_missing", "own eval losses")):
            if table[key].sum():
                found.append(f"{model}: {int(table[key].sum())} {text} could not be measured.")
        if table.training_truncated.sum():
            tasks = table[table.training_truncated > 0].task.tolist()
            found.append(f"{model}: training examples were cut to length in {tasks}.")
        if table.training_empty.sum():
            count = int(table.training_empty.sum())
            found.append(f"{model}: {count} training examples carry no loss and were left out.")
    return found


def headlines(findings: Findings) -> list[str]:
    """What was found, in sentences that say no more than intervals and corrected p-values do."""
    lines = []
    for model, z in findings.matrices.items():
        lines.append(_forgetting_sentence(model, z, findings))
        lines.append(_rank_sentence(model, findings.curves[model]))
        lines.append(_completion_sentence(model, findings.completions[model], findings.unit))
        if model in findings.comparisons:
            lines += _replay_sentences(model, findings.comparisons[model], findings.unit)
    return lines


def _forgetting_sentence(model: str, z: Any, findings: Findings) -> str:
    means = np.nanmean(z.values, axis=1)
    low, high = z.tasks[int(means.argmin())], z.tasks[int(means.argmax())]
    known = int(np.isfinite(z.values).any(axis=0).sum())
    did = f"one task raised the upstream loss by {means.mean():.3f} nats on average"
    if findings.binary:
        did = f"one task lost {means.mean():.3f} of the base model's right answers on average"
    return (
        f"{model}: {len(z.tasks)} tasks, {known} upstream examples. Fine-tuning on {did}, from "
        f"{means.min():.3f} ({low}) to {means.max():.3f} ({high})."
    )


def _rank_sentence(model: str, curve: pd.DataFrame) -> str:
    values = _rank_line(curve)
    told = ", ".join(
        f"{values[key]:.2f} at {key}" for key in ("rank 1", "rank 3", "rank 5") if key in values
    )
    return (
        f"{model}: R² of Z is {told}; task means plus example means alone reach "
        f"{values['additive']:.2f}."
    )


def _completion_sentence(model: str, table: pd.DataFrame, unit: str) -> str:
    chosen = table[(table.seed.astype(str) == "all") & (table.split == "in_domain")]
    chosen = chosen[chosen.probes == "random"]
    ks = sorted(chosen.k.unique())
    k = 30 if 30 in ks else ks[-1]
    rmse = chosen[(chosen.k == k) & (chosen.metric == "rmse")].set_index("method")
    best = rmse.value.idxmin()
    told = (
        f"{model}: from {k} probed examples of an unseen task, {LABELS.get(best, best)} "
        f"predicts the rest with RMSE {rmse.value[best]:.3f} {unit} "
        f"{_interval(rmse.low[best], rmse.high[best], '.3f')}"
    )
    others = [
        name
        for name in ("column_mean", "additive", "knn", "mf")
        if name in rmse.index and name != best
    ]
    compared = ", ".join(f"{LABELS[name]} {rmse.value[name]:.3f}" for name in others)
    return f"{told}; {compared}." if compared else f"{told}."


def _replay_sentences(model: str, table: pd.DataFrame, unit: str) -> list[str]:
    lines = []
    by = table.set_index("strategy")
    key = "heldout_forgetting"
    for name in by.index.difference(["none", "random"], sort=False):
        low, high = by[f"{key}_difference_low"][name], by[f"{key}_difference_high"][name]
        p = by[f"{key}_difference_p_holm"][name]
        lines.append(
            f"{model}: replay by {LABELS[name]} forgets {_verdict(low, high, p)} random replay: "
            f"{by[key][name]:.3f} against {by[key]['random']:.3f} {unit} held out, difference "
            f"{by[f'{key}_difference'][name]:+.4f} {_interval(low, high, '+.4f')} over "
            f"{by.tasks[name]} tasks, p {_number(p)} (Holm)."
        )
    return lines


def _verdict(low: float, high: float, p: float) -> str:
    """What the interval of one difference and its p, corrected for all of them, say together."""
    if low <= 0 <= high:
        return "no less or more (within error) than"
    if not np.isfinite([low, high, p]).all():
        return "an amount that too few tasks tell from that of"
    # Each interval alone errs at 5 percent; of several strategies one would soon leave out zero.
    sure = "" if p < SIGNIFICANT else ", but not surely once corrected for several strategies,"
    return f"{'less' if high < 0 else 'more'}{sure} than"


def _interval(low: float, high: float, digits: str) -> str:
    known = np.isfinite([low, high]).all()
    return f"[{low:{digits}}, {high:{digits}}]" if known else "(no interval)"


def most_forgotten(findings: Findings, count: int = 3) -> dict[str, dict[str, list[dict]]]:
    """Model -> task -> its most forgotten upstream examples, in their own words."""
    by_id = {example.example_id: example for example in findings.upstream}
    found: dict[str, dict[str, list[dict]]] = {}
    for model, z in findings.matrices.items():
        found[model] = {}
        for task, values in zip(z.tasks, z.values, strict=True):
            order = [i for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
            found[model][task] = [
                {
                    "id": z.example_ids[i],
                    "value": float(values[i]),
                    **_words(by_id, z.example_ids[i]),
                }
                for i in order[:count]
            ]
    return found


def _words(by_id: Mapping, example_id: str) -> dict[str, str]:
    if example_id not in by_id:
        return {"domain": "", "text": ""}
    example = by_id[example_id]
    text = example.example.text or f"{example.example.prompt} → {example.example.answer}"
    return {"domain": example.domain, "text": text}
