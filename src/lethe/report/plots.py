"""The figures of the report. Each is a function from findings to a matplotlib Figure."""

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.cluster import hierarchy

from lethe.analysis.component_reading import grow_task_tree
from lethe.report.figure_style import (
    COLOURS,
    FAINT,
    INK,
    LABELS,
    MODEL_COLOURS,
    STYLE,
    colours_of,
    label_of,
    new_panels,
)
from lethe.report.findings import Findings, over_seeds
from lethe.report.heat_map import draw_heatmap, draw_matrix
from lethe.report.sequence_section import draw_sequences


def draw_spectrum(findings: Findings) -> Figure:
    """Draws the squares of the singular values of Z as shares of their sum."""
    figure, axes = new_panels(1, 1, width=6, height=3.6)
    axis = axes[0, 0]
    colours = _model_colours(findings)
    for model, curve in findings.curves.items():
        squares = np.square(curve[curve.predictor == "svd"].singular_value.to_numpy())
        share = np.maximum(squares / squares.sum(), 1e-6)
        components = range(1, len(share) + 1)
        axis.plot(components, share, "o-", ms=3.5, color=colours[model], label=model)
    axis.set(yscale="log", xlabel="component", ylabel="share of the sum of squares of Z")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title("Spectrum of Z (uncentred)")
    axis.grid(axis="y")
    axis.legend()
    return figure


def _model_colours(findings: Findings) -> dict[str, str]:
    colours = {}
    for i, model in enumerate(findings.matrices):
        colours[model] = MODEL_COLOURS[i % len(MODEL_COLOURS)]
    return colours


def draw_rank_curves(findings: Findings) -> Figure:
    """Draws R2 of Z by rank, next to the predictors without factors."""
    figure, axes = new_panels(1, 1, width=6, height=3.6)
    draw_ranks(axes[0, 0], findings)
    return figure


def draw_ranks(axis: Axes, findings: Findings) -> None:
    """Draws R2 by rank per model, its additive fit (dotted), and its noise floor if measured."""
    colours = _model_colours(findings)
    for model, curve in findings.curves.items():
        colour = colours[model]
        svd = curve[curve.predictor == "svd"]
        axis.plot(svd["rank"], svd.r2, "o-", ms=3.5, color=colour, label=f"{model}, SVD")
        additive = float(curve[curve.predictor == "additive"].r2.iloc[0])
        label = f"{model}, task + example means"
        axis.axhline(additive, color=colour, linestyle=":", label=label)
        if model in findings.noise:
            _draw_noise_floor(axis, svd, findings.noise[model], colour=colour, model=model)
    axis.set(xlabel="rank", ylabel="R²", ylim=(0, 1.02))
    axis.set_title("R² of Z by rank")
    axis.grid(axis="y")
    axis.legend(loc="lower right")


def _draw_noise_floor(
    axis: Axes, svd: pd.DataFrame, noise: dict, *, colour: str, model: str
) -> None:
    """Shades the part that another training seed would change; rings the last rank above it."""
    ceiling = max(noise["r2_ceiling"], 0.0)
    rank = noise["rank_above"]["correlated_noise"]
    axis.axhspan(ceiling, 1, color=colour, alpha=0.13, linewidth=0, label=f"{model}, noise")
    if rank:
        axis.plot(rank, svd.r2.iloc[rank - 1], "o", ms=10, markerfacecolor="none", color=colour)
        axis.lines[-1].set_label(f"{model}, rank {rank}: last above noise")


def draw_completion(findings: Findings) -> Figure:
    """Draws the RMSE of predicted forgetting by number of probes, for every model and split."""
    splits = []
    for split in dict.fromkeys(next(iter(findings.completions.values())).split):
        # A left-out group alone, `out_of_domain:<group>`, is a line of the table only.
        if ":" not in split:
            splits.append(split)
    figure, axes = new_panels(len(findings.completions), len(splits), width=4.8, height=3.5)
    for line, (model, scores) in zip(axes, findings.completions.items(), strict=True):
        for axis, split in zip(line, splits, strict=True):
            draw_errors(axis, scores[scores.split == split], findings.unit)
            axis.set_title(f"{model}, {split.replace('_', '-')}")
    axes[0, 0].legend(ncols=2)
    return figure


def draw_errors(axis: Axes, scores: pd.DataFrame, unit: str) -> None:
    """Draws RMSE by number of probes, with 95 percent bootstrap intervals over tasks."""
    scores = over_seeds(scores)
    # Associations use no probes; the report has a table of them.
    rmse = scores[(scores.metric == "rmse") & scores.method.isin(LABELS)]
    for method, of_method in rmse.groupby("method", sort=False):
        line = of_method.sort_values("k")
        colour = COLOURS[method]
        axis.plot(line.k, line.value, "o-", ms=3.5, color=colour, label=LABELS[method])
        axis.fill_between(line.k, line.low, line.high, color=colour, alpha=0.1, linewidth=0)
    counts = sorted(rmse.k.unique())
    axis.set_xscale("log")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    axis.set(xlabel="probes of the unseen task", ylabel=f"RMSE ({unit})")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")


def draw_precision(findings: Findings) -> Figure:
    """Draws the precision to expect by number of probes, one line per number of training tasks.

    Left: the share of the most forgotten tenth that is predicted, with that of the example means,
    which need no probe, as dotted lines. Right: the error of the task's mean forgetting.
    """
    figure, axes = new_panels(len(findings.precision), 2, width=4.8, height=3.5)
    for (top, error), (model, table) in zip(axes, findings.precision.items(), strict=True):
        counts = sorted(table.training_tasks.unique())
        colours = mpl.colormaps["viridis"](np.linspace(0.85, 0.0, len(counts)))
        for count, colour in zip(counts, colours, strict=True):
            line = table[table.training_tasks == count].sort_values("k")
            label = f"{count} training tasks"
            top.plot(line.k, line.top_10_percent, "o-", ms=3.5, color=colour, label=label)
            of_means = line.column_mean_top_10_percent
            top.plot(line.k, of_means, ":", lw=1, color=colour)
            error.plot(line.k, line.task_mean_error, "o-", ms=3.5, color=colour)
        for axis in (top, error):
            ticks = sorted(table.k.unique())
            axis.set_xscale("log")
            axis.set_xticks(ticks, ticks)
            axis.minorticks_off()
            axis.set_xlabel("probes of the unseen task")
            axis.grid(axis="y")
        top.set(title=f"{model}: most forgotten tenth", ylabel="share that is predicted")
        top.set_ylim(0, 1)
        error.set(
            title=f"{model}: mean of the task", ylabel=f"error of its forgetting ({findings.unit})"
        )
        error.set_ylim(bottom=0)
        top.legend()
    return figure


def draw_forgetting_by_task(findings: Findings) -> Figure:
    """Draws mean forgetting and the gain on the new task for each fine-tune.

    Tasks are in the order of the first model's forgetting.
    """
    height = 1.2 + 0.17 * len(findings.tasks)
    figure, axes = new_panels(1, 2, width=5.4, height=height)
    upstream, new_task = axes[0]
    first = next(iter(findings.summaries.values()))
    order = first.sort_values("mean_forgetting").task.tolist()
    positions = range(len(order))
    colours = _model_colours(findings)
    for model, table in findings.summaries.items():
        table = table.set_index("task").loc[order]
        gain = table.eval_loss_before - table.eval_loss_after
        for axis, values in ((upstream, table.mean_forgetting), (new_task, gain)):
            axis.plot(values, positions, "o", ms=4.5, color=colours[model], label=model)
    upstream.set_yticks(positions, order, fontsize=7)
    new_task.set_yticks(positions, [])
    upstream.set(title="upstream examples", xlabel=f"mean {findings.measure}")
    new_task.set(title="new task", xlabel="fall of the task's own eval loss (nats)")
    for axis in (upstream, new_task):
        axis.axvline(0, color=FAINT, linewidth=0.8)
        axis.grid(axis="x")
    upstream.legend()
    return figure


def draw_replay(findings: Findings) -> Figure:
    """Draws held-out forgetting by strategy, its difference to random replay, and the trade-off."""
    figure, axes = new_panels(len(findings.comparisons), 3, width=4.3, height=3.1)
    for line, (model, table) in zip(axes, findings.comparisons.items(), strict=True):
        strategies, differences, trade_off = line
        draw_strategies(strategies, table, measure="heldout_forgetting")
        strategies.set_xlabel(f"held out: {findings.measure}")
        strategies.set_title(f"{model}, held-out forgetting")
        mark_measures(strategies, table)
        draw_differences(differences, table, findings.unit)
        differences.set_title("difference to random replay")
        draw_trade_off(trade_off, table, findings.measure)
        trade_off.set_title("forgetting against new-task loss")
    return figure


def draw_strategies(axis: Axes, table: pd.DataFrame, *, measure: str) -> None:
    """Draws one bar per strategy with its 95 percent interval over tasks."""
    values = table[measure]
    spread = _error_bars(values, table[f"{measure}_low"], table[f"{measure}_high"])
    positions = range(len(table))
    axis.barh(positions, values, color=colours_of(table.strategy), height=0.65)
    axis.errorbar(values, positions, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axis.set_yticks(positions, table.strategy.map(label_of))
    axis.invert_yaxis()
    axis.grid(axis="x")
    axis.set_axisbelow(True)


def mark_measures(axis: Axes, table: pd.DataFrame) -> None:
    """Marks each strategy's drift and worst domain on its bar, which shows the mean rise only."""
    positions = range(len(table))
    for measure, words, marker in (
        ("drift", "mean absolute change (drift)", "D"),
        ("worst_domain_forgetting", "worst domain", ">"),
    ):
        if measure in table:
            axis.plot(table[measure], positions, marker, ms=4, mfc="none", mec=INK, label=words)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right", fontsize=7)


def _error_bars(values: pd.Series, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Lengths (2, n) of error bars; rounding may put an end on the wrong side of the mean."""
    return np.maximum(np.array([values - low, high - values], dtype=float), 0)


def draw_differences(axis: Axes, table: pd.DataFrame, unit: str) -> None:
    """Draws paired differences to random replay with 95 percent intervals over tasks."""
    # A run's colour follows from its place among all runs, so that all panels agree.
    coloured = table.assign(colour=colours_of(table.strategy))
    others = coloured[~table.strategy.isin(["random", "none"])].reset_index(drop=True)
    values = others.heldout_forgetting_difference
    spread = _bars_of_difference(others, "heldout_forgetting")
    for position, colour in enumerate(others.colour):
        axis.errorbar(
            values[position],
            position,
            xerr=spread[:, [position]],
            color=colour,
            fmt="o",
            ms=6,
            capsize=3,
        )
    axis.axvline(0, color=FAINT, linewidth=0.9)
    axis.set_yticks(range(len(others)), others.strategy.map(label_of))
    axis.set_ylim(len(others) - 0.5, -0.5)
    axis.set_xlabel(f"{unit}; left of 0: less forgotten")
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x")


def draw_trade_off(axis: Axes, table: pd.DataFrame, measure: str) -> None:
    """Draws one point per strategy: held-out forgetting against the loss on the new task.

    The best strategies are at the lower left: little is forgotten, and the new task is learned.
    Bars are 95 percent intervals, over tasks, of the paired differences to random replay.
    """
    coloured = table.assign(colour=colours_of(table.strategy))
    for line in coloured.itertuples():
        axis.plot(
            line.eval_loss_after,
            line.heldout_forgetting,
            "o",
            ms=7,
            color=line.colour,
            label=label_of(line.strategy),
        )
    others = coloured[coloured.strategy != "random"]
    axis.errorbar(
        others.eval_loss_after,
        others.heldout_forgetting,
        xerr=_bars_of_difference(others, "eval_loss_after"),
        yerr=_bars_of_difference(others, "heldout_forgetting"),
        fmt="none",
        ecolor=others.colour,
        elinewidth=0.9,
        zorder=1,
    )
    axis.set_xlabel("loss on the new task (nats)")
    axis.set_ylabel(f"held out: {measure}")
    axis.locator_params(axis="x", nbins=5)
    axis.margins(0.12)
    axis.grid()
    axis.set_axisbelow(True)
    axis.legend(fontsize=7)


def _bars_of_difference(table: pd.DataFrame, measure: str) -> np.ndarray:
    """Lengths (2, n) of error bars around differences to random replay."""
    return _error_bars(
        table[f"{measure}_difference"],
        low=table[f"{measure}_difference_low"],
        high=table[f"{measure}_difference_high"],
    )


def draw_overview(findings: Findings) -> Figure:
    """Draws four results of the first model in one picture."""
    model, z = next(iter(findings.matrices.items()))
    figure, axes = new_panels(2, 2, width=5.2, height=3.4)
    matrix, rank, error, replay = axes.flat
    image = draw_matrix(matrix, z, findings, names=False)
    figure.colorbar(image, ax=matrix, label=findings.unit, pad=0.01, fraction=0.04)
    matrix.set_ylabel(f"{len(z.tasks)} fine-tuning tasks")
    matrix.set_title("1  Forgetting by task and upstream example")
    matrix.tick_params(axis="x", labelrotation=25, labelsize=7)
    draw_ranks(rank, findings)
    rank.set_title("2  R² of Z by rank")
    scores = findings.completions[model]
    draw_errors(error, scores[scores.split == "in_domain"], findings.unit)
    error.set_title("3  Error of predicted forgetting")
    error.legend(ncols=2, fontsize=7)
    if model in findings.comparisons:
        draw_trade_off(replay, findings.comparisons[model], findings.measure)
        replay.set_title("4  Replay: forgetting against new-task loss")
        replay.text(0.02, 0.03, "↙ better", transform=replay.transAxes, color=FAINT)
    else:
        replay.set_axis_off()
    return figure


def draw_task_tree(findings: Findings) -> Figure:
    """Draws one tree of tasks per model; tasks that forget the same examples are joined early."""
    trees = {model: grow_task_tree(z) for model, z in findings.matrices.items()}
    most = max(len(tree.tasks) for tree in trees.values())
    figure, axes = new_panels(1, len(trees), width=5.2, height=1.2 + 0.16 * most)
    for axis, (model, tree) in zip(axes[0], trees.items(), strict=True):
        axis.set_title(model)
        if not len(tree.merges):
            axis.text(0.5, 0.5, "too few tasks that share examples", ha="center")
            axis.set_axis_off()
            continue
        hierarchy.dendrogram(
            tree.merges,
            labels=tree.tasks,
            orientation="left",
            color_threshold=0,
            above_threshold_color=INK,
            leaf_font_size=7 if most <= 60 else 4,
            ax=axis,
        )
        axis.set_xlabel("distance (1 − correlation of two rows of Z)")
        axis.spines["left"].set_visible(False)
    return figure


FIGURES: dict[str, Callable[[Findings], Figure]] = {
    "overview": draw_overview,
    "heatmap": draw_heatmap,
    "spectrum": draw_spectrum,
    "rank_curves": draw_rank_curves,
    "task_tree": draw_task_tree,
    "completion": draw_completion,
    "precision": draw_precision,
    "forgetting_by_task": draw_forgetting_by_task,
    "replay": draw_replay,
    "sequences": lambda findings: draw_sequences(findings.sequences),
}


def draw_figure(name: str, findings: Findings) -> Figure:
    """Draws the figure with this name in `FIGURES`."""
    with mpl.rc_context(STYLE):
        return FIGURES[name](findings)
