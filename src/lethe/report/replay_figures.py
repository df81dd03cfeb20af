"""Interactive figures of replay: the trade-off of all runs, and their differences on each task."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, FactorRange, Span
from bokeh.plotting import figure

from lethe.report.bokeh_figures import add_hover, as_item, new_figure
from lethe.report.figure_style import FAINT, colours_of, label_of

# With more runs, names would lie on each other.
_MOST_NAMED = 12
# Measures that a table of runs may have, in the order of the columns, and their words.
MEASURES = {
    "heldout_forgetting": "held-out forgetting",
    "eval_loss_after": "loss on the new task",
    "worst_domain_forgetting": "worst domain",
    "rise_share": "share of rises",
    "rise_mean": "mean rise",
    "drift": "drift",
    "heldout_kl": "KL",
}
DOSES = {
    "replayed_token_share": "share of loss tokens that are replayed",
    "replayed_distinct": "distinct examples replayed",
    "effective_sample_size": "effective sample size",
    "random_in_effect": "share of draws that are random in effect",
}


def make_replay_figure(
    runs: pd.DataFrame, unit: str, frontiers: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The trade-off of all runs and their differences to random replay, as JSON for Bokeh.

    Parameters
    ----------
    runs
        replay.csv of a model.
    frontiers
        Names of the runs of each frontier (`lethe.replay.planned_contrasts.frontier_runs`).
    """
    table = summarise_runs(runs)
    # A run's colour follows from its place among all runs, so that all panels agree.
    colours = dict(zip(table.strategy, colours_of(table.strategy), strict=True))
    panels: list[Any] = [_draw_trade_off(table.assign(colour=colours.values()), unit, frontiers)]
    differences = task_differences(runs)
    if len(differences):
        panels.append(_draw_differences(differences, unit, colours))
    return as_item(column(*panels, sizing_mode="stretch_width"))


def summarise_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """One line per run, in their order: means over tasks and seeds, and the worst domain.

    `worst_domain` is the domain that the run harms most on most tasks. Measures that the table does
    not have are left out.
    """
    grouped = runs.groupby("strategy", sort=False)
    names = [name for name in (*MEASURES, *DOSES, "training_seconds") if name in runs]
    # Truth values with gaps are objects, of which there is no mean.
    table = runs[names].astype(float).groupby(runs.strategy, sort=False).mean()
    table["tasks"] = grouped.task.nunique()
    if "worst_domain" in runs:
        table["worst_domain"] = grouped.worst_domain.agg(_most_frequent)
    return table.reset_index()


def _most_frequent(names: pd.Series) -> str:
    counts = names.dropna().value_counts()
    return "" if counts.empty else str(counts.index[0])


def task_differences(runs: pd.DataFrame) -> pd.DataFrame:
    """Differences of every run to random replay on the same task, means over seeds.

    Returns
    -------
    strategy, task, heldout_forgetting and eval_loss_after (both differences, in nats). The table
    is empty without random replay; no replay is left out because it differs most by far.
    """
    measures = ["heldout_forgetting", "eval_loss_after"]
    means = runs.groupby(["strategy", "task"], sort=False)[measures].mean().reset_index()
    reference = means[means.strategy == "random"].set_index("task")[measures]
    others = means[~means.strategy.isin(["random", "none"])]
    others = others[others.task.isin(reference.index)].reset_index(drop=True)
    for measure in measures:
        others[measure] -= reference.loc[others.task, measure].to_numpy()
    return others


def _draw_trade_off(
    table: pd.DataFrame, unit: str, frontiers: Mapping[str, Sequence[str]]
) -> figure:
    plot = new_figure(height=420, title="Forgetting against new-task loss (means over tasks)")
    for names in frontiers.values():
        line = table[table.strategy.isin(names)].sort_values("eval_loss_after")
        plot.line(
            line.eval_loss_after.tolist(),
            line.heldout_forgetting.tolist(),
            color=FAINT,
            line_dash="dashed",
        )
    data = {name: table[name].tolist() for name in table if name != "strategy"}
    data["run"] = [label_of(name) for name in table.strategy]
    source = ColumnDataSource(data)
    points = plot.scatter(
        "eval_loss_after", "heldout_forgetting", source=source, color="colour", size=10
    )
    if len(table) <= _MOST_NAMED:
        # The names stand to the right of the points.
        plot.x_range.range_padding = 0.3
        plot.text(
            "eval_loss_after",
            "heldout_forgetting",
            text="run",
            source=source,
            x_offset=8,
            y_offset=4,
            text_font_size="9pt",
            text_color="colour",
        )
    plot.xaxis.axis_label = "loss on the new task (nats)"
    plot.yaxis.axis_label = f"held-out forgetting ({unit})"
    tooltips = [("run", "@run"), ("tasks", "@tasks")]
    for name, words in (MEASURES | DOSES).items():
        if name in table:
            tooltips.append((words, f"@{name}{{0.000}}"))
    if "worst_domain" in table:
        tooltips.append(("most often the worst domain", "@worst_domain"))
    add_hover(plot, tooltips, renderers=[points])
    return plot


def _draw_differences(differences: pd.DataFrame, unit: str, colours: Mapping[str, str]) -> Any:
    names = list(dict.fromkeys(differences.strategy))
    labels = [label_of(name) for name in names]
    source = ColumnDataSource(
        {
            "run": [label_of(name) for name in differences.strategy],
            "task": differences.task.tolist(),
            "heldout_forgetting": differences.heldout_forgetting.tolist(),
            "eval_loss_after": differences.eval_loss_after.tolist(),
            "colour": [colours[name] for name in differences.strategy],
        }
    )
    means = differences.groupby("strategy", sort=False)[["heldout_forgetting", "eval_loss_after"]]
    averages = means.mean()
    runs = FactorRange(factors=list(dict.fromkeys(labels))[::-1])
    panels = []
    for measure in ("heldout_forgetting", "eval_loss_after"):
        plot = new_figure(
            height=110 + 22 * len(names),
            title=f"{MEASURES[measure]}: difference to random replay, per task",
            y_range=runs,
        )
        plot.toolbar.autohide = True
        plot.add_layout(Span(location=0, dimension="height", line_color=FAINT))
        points = plot.scatter(measure, "run", source=source, color="colour", size=8, alpha=0.6)
        mean_source = ColumnDataSource({"run": labels, "mean": averages[measure].tolist()})
        plot.scatter(
            "mean", "run", source=mean_source, marker="dash", angle=1.5708, size=16, color=FAINT
        )
        plot.xaxis.axis_label = (
            f"{unit if measure == 'heldout_forgetting' else 'nats'}; left of 0: lower"
        )
        tooltips = [("run", "@run"), ("task", "@task"), ("difference", f"@{measure}{{0.000}}")]
        add_hover(plot, tooltips, renderers=[points])
        panels.append(plot)
    return row(*panels, sizing_mode="stretch_width")
