"""Interactive figures of the prediction: errors by probes, calibration, domains, agreement."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    GlyphRenderer,
    Range1d,
    Slope,
    TapTool,
)
from bokeh.plotting import figure

from lethe.completion.scores import METRICS, score_rows
from lethe.report.bokeh_figures import add_hover, as_item, new_figure
from lethe.report.figure_style import COLOURS, FAINT, label_of
from lethe.report.findings import Findings, over_seeds

_METRICS = {"rmse": "RMSE", "top_10_percent": "most forgotten tenth: share found"}
_SPLITS = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}
_LEVELS = (0.5, 0.8, 0.9, 0.95)
_METHOD_COLOUR = COLOURS["gaussian"]


def make_prediction_figure(
    scores: pd.DataFrame,
    unit: str,
    *,
    measured: np.ndarray,
    predicted: np.ndarray,
    domains: Sequence[str],
) -> dict[str, Any]:
    """Errors and rank overlap by probes, calibration, and errors by domain, as JSON for Bokeh.

    Parameters
    ----------
    scores
        completion.csv of a model.
    measured, predicted
        Z and the predictions of its cells (M, n) in nats, for the shown examples.
    domains
        Domain of each shown example; empty texts for an own matrix.
    """
    lines = []
    for split, split_label in _SPLITS.items():
        panels = []
        for metric, label in _METRICS.items():
            part = scores_over_seeds(scores, split, metric)
            if len(part):
                name = f"{label} ({unit})" if metric == "rmse" else label
                panels.append(_draw_by_probes(part, f"{name}, {split_label}"))
        lines.append(panels)
    lines.append(_calibration_and_domains(scores, unit, measured, predicted, domains))
    rows = [row(*panels, sizing_mode="stretch_width") for panels in lines if panels]
    return as_item(column(*rows, sizing_mode="stretch_width"))


def scores_over_seeds(scores: pd.DataFrame, split: str, metric: str) -> pd.DataFrame:
    """The lines of completion.csv with this split and metric, random probes, over all seeds."""
    scores = over_seeds(scores)
    return scores[(scores.split == split) & (scores.metric == metric)]


def _draw_by_probes(scores: pd.DataFrame, title: str) -> figure:
    counts = sorted(int(count) for count in scores.k.unique())
    plot = new_figure(height=300, title=title, x_axis_type="log")
    for method, part in scores.groupby("method", sort=False):
        if method not in COLOURS:
            continue
        part = part.sort_values("k")
        data = {name: part[name].tolist() for name in ("k", "value", "low", "high")}
        source = ColumnDataSource(data | {"method": [label_of(str(method))] * len(part)})
        colour = COLOURS[str(method)]
        label = label_of(str(method))
        plot.line("k", "value", source=source, color=colour, line_width=2, legend_label=label)
        plot.scatter("k", "value", source=source, color=colour, size=6, legend_label=label)
    plot.xaxis.ticker = FixedTicker(ticks=counts)
    # A logarithmic axis would write powers of ten, and round other counts to them.
    plot.xaxis.major_label_overrides = {count: str(count) for count in counts}
    plot.xaxis.axis_label = "probes of the unseen task"
    tooltips = [("method", "@method"), ("probes", "@k"), ("value", "@value{0.000}")]
    tooltips.append(("interval", "@low{0.000} to @high{0.000}"))
    markers = [item for item in plot.renderers if _is_scatter(item)]
    add_hover(plot, tooltips, renderers=markers)
    _place_legend(plot)
    return plot


def _is_scatter(renderer: Any) -> bool:
    return isinstance(renderer, GlyphRenderer) and type(renderer.glyph).__name__ == "Scatter"


def _place_legend(plot: figure) -> None:
    """Puts the legend beside the figure; a click on an entry hides its line."""
    plot.toolbar.autohide = True
    if not plot.legend:
        return
    legend = plot.legend[0]
    legend.click_policy = "hide"
    legend.label_text_font_size = "8pt"
    legend.border_line_color = None
    legend.spacing = 0
    legend.padding = 0
    plot.add_layout(legend, "right")


def _calibration_and_domains(
    scores: pd.DataFrame,
    unit: str,
    measured: np.ndarray,
    predicted: np.ndarray,
    domains: Sequence[str],
) -> list[figure]:
    panels = []
    coverage = coverage_table(scores)
    if len(coverage):
        panels.append(_draw_calibration(coverage))
    errors = errors_by_domain(measured, predicted, domains)
    if len(errors) > 1:
        panels.append(_draw_domains(errors, unit))
    return panels


def coverage_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Coverage of the in-domain intervals: method, k, level, value, low and high."""
    parts = []
    for level in _LEVELS:
        part = scores_over_seeds(scores, "in_domain", f"coverage_{100 * level:.0f}")
        parts.append(part.assign(level=level))
    return pd.concat(parts)[["method", "k", "level", "value", "low", "high"]]


def _draw_calibration(coverage: pd.DataFrame) -> figure:
    plot = new_figure(height=300, title="Calibration: cells inside their intervals, in-domain")
    plot.x_range = Range1d(0.45, 1)
    plot.y_range = Range1d(0, 1.02)
    plot.add_layout(Slope(gradient=1, y_intercept=0, line_color=FAINT, line_dash="dashed"))
    dashes = ("solid", "dashed", "dotted", "dotdash")
    for number, (key, part) in enumerate(coverage.groupby(["method", "k"], sort=False)):
        method, count = key
        if method not in COLOURS:
            continue
        label = f"{label_of(method)}, {count} probes"
        names = ("level", "value", "low", "high")
        data = {name: part[name].tolist() for name in names}
        source = ColumnDataSource(data | {"label": [label] * len(part)})
        colour = COLOURS[method]
        dash = dashes[number % len(dashes)]
        plot.line("level", "value", source=source, color=colour, line_dash=dash, legend_label=label)
        plot.scatter("level", "value", source=source, color=colour, size=6, legend_label=label)
    plot.xaxis.axis_label = "level of the interval"
    plot.yaxis.axis_label = "share of cells inside"
    tooltips = [("intervals", "@label"), ("level", "@level{0.00}"), ("inside", "@value{0.000}")]
    tooltips.append(("interval", "@low{0.000} to @high{0.000}"))
    add_hover(plot, tooltips, renderers=[item for item in plot.renderers if _is_scatter(item)])
    _place_legend(plot)
    return plot


def errors_by_task(
    measured: np.ndarray, predicted: np.ndarray, tasks: Sequence[str], example_ids: Sequence[str]
) -> list[dict[str, Any]]:
    """How well each task was predicted, over its predicted cells.

    Returns
    -------
    For each task with at least two such cells: task, mean, predicted_mean, rmse, the share
    top_10_percent of its most forgotten tenth that is in the predicted tenth, and the example whose
    forgetting was underestimated most (missed, missed_measured, missed_predicted).
    """
    lines = []
    for task, truth, prediction in zip(tasks, measured, predicted, strict=True):
        cells = np.flatnonzero(np.isfinite(truth) & np.isfinite(prediction))
        if len(cells) < 2:
            continue
        of_task = truth[cells].astype(np.float64)
        of_prediction = prediction[cells].astype(np.float64)
        # The thresholds concern F1 only, which this table does not have.
        [scores] = score_rows(of_task[None], of_prediction[None], 0.0, 0.0)
        by_metric = dict(zip(METRICS, scores, strict=True))
        missed = int(np.argmax(of_task - of_prediction))
        lines.append(
            {
                "task": task,
                "mean": float(of_task.mean()),
                "predicted_mean": float(of_prediction.mean()),
                "rmse": float(by_metric["rmse"]),
                "top_10_percent": float(by_metric["top_10_percent"]),
                "missed": example_ids[cells[missed]],
                "missed_measured": float(of_task[missed]),
                "missed_predicted": float(of_prediction[missed]),
            }
        )
    return lines


def errors_by_domain(
    measured: np.ndarray, predicted: np.ndarray, domains: Sequence[str]
) -> pd.DataFrame:
    """Errors of the predicted cells by domain, the largest first.

    Returns
    -------
    domain, rmse, mean (of the measured cells), mean_error (predicted minus measured), all in nats,
    and cells.
    """
    records = []
    errors = predicted - measured
    names = np.asarray(domains)
    for domain in dict.fromkeys(domains):
        part = errors[:, names == domain]
        in_both = np.isfinite(part)
        if not in_both.any():
            continue
        values = part[in_both].astype(np.float64)
        records.append(
            {
                "domain": domain,
                "rmse": float(np.sqrt(np.mean(values**2))),
                "mean": float(measured[:, names == domain][in_both].mean()),
                "mean_error": float(values.mean()),
                "cells": len(values),
            }
        )
    columns = ["domain", "rmse", "mean", "mean_error", "cells"]
    return pd.DataFrame(records, columns=columns).sort_values("rmse", ascending=False)


def _draw_domains(errors: pd.DataFrame, unit: str) -> figure:
    plot = new_figure(
        height=max(220, 80 + 18 * len(errors)),
        title="Which domains are predicted worst?",
        y_range=errors.domain.tolist()[::-1],
    )
    source = ColumnDataSource({name: errors[name].tolist() for name in errors})
    bars = plot.hbar(y="domain", right="rmse", height=0.6, color=_METHOD_COLOUR, source=source)
    plot.toolbar.autohide = True
    plot.x_range.start = 0
    plot.xaxis.axis_label = f"RMSE of the predicted cells ({unit})"
    tooltips = [
        ("domain", "@domain"),
        ("RMSE", "@rmse{0.000}"),
        ("mean forgetting", "@mean{0.000}"),
    ]
    tooltips += [("predicted minus measured", "@mean_error{0.000}"), ("cells", "@cells")]
    add_hover(plot, tooltips, renderers=[bars])
    return plot


def make_agreement_figure(findings: Findings) -> dict[str, Any]:
    """Predicted against measured forgetting of one task, as JSON; figures.js fills it."""
    # Without a point, Bokeh could not choose ranges.
    cells: dict[str, list] = {"measured": [0.0], "predicted": [0.0], "colour": [FAINT]}
    for name in ("example", "domain", "text"):
        cells[name] = [""]
    source = ColumnDataSource(cells, name="agreement-cells")
    plot = new_figure(height=420, title="", match_aspect=True)
    plot.title.name = "agreement-title"
    plot.add_layout(Slope(gradient=1, y_intercept=0, line_color=FAINT, line_dash="dashed"))
    points = plot.scatter("measured", "predicted", source=source, color="colour", size=6, alpha=0.7)
    plot.add_tools(TapTool(renderers=[points]))
    plot.xaxis.axis_label = f"measured forgetting ({findings.unit})"
    plot.yaxis.axis_label = f"predicted forgetting ({findings.unit})"
    tooltips = [("example", "@example"), ("domain", "@domain"), ("forgetting", "@measured{0.000}")]
    tooltips += [("prediction", "@predicted{0.000}"), ("text", "@text")]
    add_hover(plot, tooltips, renderers=[points])
    return as_item(plot)
