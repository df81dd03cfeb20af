"""One self-contained HTML page with all results of an experiment."""

import base64
import io
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

import lethe
from lethe.analysis import transfer
from lethe.config.replay_settings import Replay
from lethe.config.task_table import Task
from lethe.replay.planned_contrasts import frontier_runs
from lethe.report.cell_predictions import PROBES
from lethe.report.component_section import describe_components
from lethe.report.example_browser import choose_shown, make_browser, text_of
from lethe.report.example_page import cut_text
from lethe.report.figure_style import label_of
from lethe.report.findings import Findings, over_seeds
from lethe.report.finer_section import COLUMNS, finer_lines
from lethe.report.headlines import make_headlines, rank_values
from lethe.report.interactive_figures import make_figures
from lethe.report.next_steps import find_worst_tasks, suggest_steps
from lethe.report.replay_figures import DOSES, MEASURES, summarise_runs
from lethe.report.run_descriptions import describe_runs
from lethe.report.sequence_section import SequenceTables
from lethe.report.verdict import describe_origin, make_verdicts

CAPTIONS = {
    "overview": "The first model at a glance: forgetting by task and text, its rank, the error of "
    "the prediction, and the effect of replay. In the last part, bars are 95 percent intervals, "
    "over tasks, of the differences to random replay.",
    "forgetting_by_task": "Left: mean forgetting of the upstream examples per fine-tune. Right: "
    "fall of the loss on the task's own evaluation examples. A fine-tune near 0 on the right "
    "learned nothing.",
    "spectrum": "Squares of the singular values of Z as shares of their sum.",
    "rank_curves": "R² of the best approximation of Z of each rank (uncentred SVD, centred "
    "denominator). Dotted: task mean plus example mean, without factors.",
    "task_tree": "Tasks that make a model forget the same examples are joined early. The distance "
    "is 1 minus Pearson's correlation of two rows of Z, averaged over the pairs of tasks of two "
    "branches (average linkage).",
    "precision": "How many probes and training tasks a wanted precision needs. Every training task "
    "is predicted from so many others and from random probes. Left: share of the most forgotten "
    "tenth that is in the predicted tenth (chance: 0.1). Dotted: by the means of the examples "
    "alone, without probes. Right: absolute error of the predicted mean forgetting of the task.",
    "sequences": "Left: mean forgetting of held-out upstream examples after each task of an order, "
    "against the original base model; thin lines are single orders. Dotted: the sum of the rows of "
    "the tasks learned alone, without replay. Right: R² of a sequence's rows, without replay, "
    "predicted from the rows of its tasks. Above 0, a prediction is better than the mean.",
}


# The longest text in the lists of the most forgotten examples.
MOST_CHARACTERS = 2000


def render_page(
    findings: Findings,
    figures: Mapping[str, bytes],
    settings: dict[str, Any],
    left_out: Mapping[str, Task] = MappingProxyType({}),
    ledger: pd.DataFrame | None = None,
) -> str:
    """Renders the page as HTML. All text from data is escaped; images are part of the page.

    Parameters
    ----------
    figures
        PNG images by name, as in `lethe.report.plots.FIGURES`. The page has them as WebP without
        loss, which takes less than half of the space.
    settings
        The experiment. The page shows all of its settings.
    left_out
        Tasks that are missing from all tables and figures; the page names them at each.
    ledger
        ledger.csv, with the planned and the actual cost of each rule; None: the page says how to
        make it.
    """
    environment = Environment(
        loader=PackageLoader("lethe.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["number"] = format_number
    environment.filters["label"] = label_of
    threshold = settings["completion"]["threshold"]
    images = {name: base64.b64encode(_to_webp(png)).decode() for name, png in figures.items()}
    shown = choose_shown(findings)
    replay = _replay_settings(settings)
    return environment.get_template("report.html.j2").render(
        name=settings["experiment"],
        binary=findings.binary,
        unit=findings.unit,
        verdicts=make_verdicts(findings, settings),
        next_steps=suggest_steps(findings),
        worst_tasks=find_worst_tasks(findings),
        origins=describe_origin(findings, settings),
        size=next(iter(findings.matrices.values())).values.shape,
        run_descriptions={} if replay is None else describe_runs(replay),
        headlines=make_headlines(findings),
        warnings=make_warnings(findings),
        left_out=describe_left_out(left_out),
        images=images,
        captions=CAPTIONS,
        summaries=_by_model(_records, findings.summaries),
        curves=_by_model(rank_values, findings.curves),
        f1_by_rank=_by_model(_f1_values, findings.curves),
        completions=_by_model(_scores, findings.completions),
        precision=_by_model(_records, findings.precision),
        comparisons=_by_model(_records, findings.comparisons),
        replay_measures=_by_model(_replay_measures, findings.comparisons),
        measures=MEASURES,
        contrasts=_by_model(_records, findings.contrasts),
        frontiers=_by_model(_records, findings.frontiers),
        advice=_by_model(_records, findings.advice),
        associations=_by_model(_records, findings.associations),
        sequences={model: tables.lines() for model, tables in findings.sequences.items()},
        sequence_measures=_by_model(SequenceTables.measures, findings.sequences),
        finer=_by_model(finer_lines, findings.finer),
        finer_columns=COLUMNS,
        components=describe_components(findings),
        domain_tests=bool(findings.domain_tests),
        transfer=_transfer_lines(findings),
        forgotten=most_forgotten(findings),
        browser=make_browser(findings, shown, threshold),
        interactive=make_figures(
            findings, shown, {} if replay is None else frontier_runs(replay, by_ratio=False)
        ),
        run_summaries=_by_model(_run_summaries, findings.runs),
        doses=DOSES,
        ledger=[] if ledger is None else _records(ledger),
        # Ledgers of earlier versions, and of experiments without a price, have no money.
        priced=ledger is not None and "money" in ledger and ledger.money.notna().any(),
        currency=settings.get("plan", {}).get("currency", ""),
        threshold=threshold,
        probes=PROBES,
        settings=json.dumps(settings, indent=1),
        version=lethe.__version__,
    )


def _to_webp(png: bytes) -> bytes:
    image = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(image, "WEBP", lossless=True, method=6)
    return image.getvalue()


def _replay_settings(settings: Mapping[str, Any]) -> Replay | None:
    """The section replay; None for an experiment without strategies."""
    replay = settings.get("replay")
    if not replay or "strategies" not in replay:
        return None
    return Replay.model_validate(replay)


def _run_summaries(runs: pd.DataFrame) -> list[dict]:
    return _records(summarise_runs(runs))


def _transfer_lines(findings: Findings) -> list[dict]:
    return [] if findings.transfer is None else transfer.transfer_table(_records(findings.transfer))


def format_number(value: Any, digits: int = 3) -> str:
    """Writes a number with this many decimals, and a dash for None, NaN or infinity."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:z.{digits}f}"


def _records(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def _by_model(function: Callable, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    return {model: function(table) for model, table in tables.items()}


def _replay_measures(table: pd.DataFrame) -> list[str]:
    """The measures in a table of replay_comparison.csv; one of an older version has fewer."""
    return [measure for measure in MEASURES if measure in table]


def _f1_values(curve: pd.DataFrame) -> dict[str, float]:
    """F1 of a binary Z by the rank of its logistic factors; empty for other matrices."""
    if "f1" not in curve:
        return {}
    f1 = curve[curve.predictor == "logistic_mf"].set_index("rank").f1
    return {f"rank {rank}": float(value) for rank, value in f1.items()}


def _scores(table: pd.DataFrame) -> list[dict]:
    """One line per split, method and number of probes, with all metrics and their intervals."""
    scores = over_seeds(table)
    # The page has the left-out groups together; completion.csv has each, `out_of_domain:<group>`.
    scores = scores[~scores.split.str.contains(":")]
    lines = []
    for (split, method, k), part in scores.groupby(["split", "method", "k"], sort=False):
        metrics = {record["metric"]: record for record in _records(part)}
        lines.append({"split": split, "method": method, "k": k, "metrics": metrics})
    return lines


def describe_left_out(tasks: Mapping[str, Task]) -> list[dict[str, str]]:
    """The lines of left_out.csv: task, group and split."""
    lines = []
    for name, task in tasks.items():
        lines.append({"task": name, "group": task.group, "split": task.split})
    return lines


def make_warnings(findings: Findings) -> list[str]:
    """Lists the facts about an experiment that could mislead a reader of its numbers."""
    warnings = []
    for model, checks in findings.sanity.items():
        warnings += [f"{model}: {warning}" for warning in checks["warnings"]]
    for model, table in findings.summaries.items():
        warnings += [f"{model}: {warning}" for warning in _fine_tune_warnings(table)]
    return warnings


def _fine_tune_warnings(table: pd.DataFrame) -> list[str]:
    warnings = []
    # Tables of an older version have no such column.
    versions = sorted(table.lethe_version.unique()) if "lethe_version" in table else []
    if len(versions) > 1:
        warnings.append(
            f"Rows were measured with several versions of lethe: {_list(versions)}. Compare them "
            "with care."
        )
    idle = table[table.eval_loss_after >= table.eval_loss_before].task.tolist()
    if idle:
        warnings.append(f"Fine-tuning did not lower the loss on the task itself for {_list(idle)}.")
    # Every row has scored the same upstream examples, so one row has the number for all.
    truncated = int(table.truncated.iloc[0])
    if truncated:
        warnings.append(
            f"{truncated} upstream examples were cut at scoring.max_tokens; only the part before "
            "the cut is measured."
        )
    missing = int(table.missing.sum())
    if missing:
        warnings.append(f"{missing} losses of upstream examples could not be measured.")
    missing = int(table.eval_missing.sum())
    if missing:
        warnings.append(f"{missing} losses of the tasks' own evaluation could not be measured.")
    cut = table[table.training_truncated > 0].task.tolist()
    if cut:
        warnings.append(f"Training examples were cut at recipe.max_tokens in {_list(cut)}.")
    empty = int(table.training_empty.sum())
    if empty:
        warnings.append(f"{empty} training examples carry no loss and were left out.")
    return warnings


def _list(names: list[str]) -> str:
    return ", ".join(names)


def most_forgotten(findings: Findings, count: int = 3) -> dict[str, dict[str, list[dict]]]:
    """Selects the most forgotten upstream examples, by model and task, with their texts.

    A text longer than `MOST_CHARACTERS` is cut, because the example browser has the whole.
    """
    selected: dict[str, dict[str, list[dict]]] = {}
    for model, z in findings.matrices.items():
        selected[model] = {}
        for task, values in zip(z.tasks, z.values, strict=True):
            order = [i for i in np.argsort(-values, kind="stable") if np.isfinite(values[i])]
            lines = []
            for i in order[:count]:
                example_id = z.example_ids[i]
                line = {"id": example_id, "value": float(values[i]), "domain": "", "text": ""}
                if (example := findings.examples.get(example_id)) is not None:
                    line["domain"] = example.domain
                    line["text"] = cut_text(text_of(example), MOST_CHARACTERS)
                lines.append(line)
            selected[model][task] = lines
    return selected
