"""Figures, each a function from findings to a matplotlib Figure."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lethe.files import whole
from lethe.matrix.forgetting_matrix import Matrix
from lethe.report.findings import Findings

INK, FAINT = "#24292f", "#8b949e"
# One colour a method in every figure, told apart without red against green.
COLOURS = {
    "none": "#57606a",
    "random": "#9aa4ae",
    "constant": "#d0d7de",
    "column_mean": "#c69214",
    "additive": "#56a0d3",
    "affine": "#a3c7e3",
    "knn": "#7b61c4",
    "soft_impute": "#c4622d",
    "logistic_mf": "#5e9cae",
    "logistic_foldin": "#7fb69e",
    "mf": "#0b6e99",
    "gaussian": "#1b7f5c",
    "oracle": "#b5467a",
    "balanced": "#7c8791",
    "domain": "#3f9a78",
    "coverage": "#0f5a44",
    "perplexity": "#a06a3b",
    "perplexity_median": "#cfae8e",
}
LABELS = {
    "none": "no replay",
    "random": "random",
    "constant": "constant",
    "column_mean": "column mean",
    "additive": "additive",
    "affine": "affine",
    "knn": "KNN",
    "soft_impute": "soft-impute",
    "logistic_mf": "logistic MF",
    "logistic_foldin": "logistic fold-in",
    "mf": "matrix factorisation",
    "gaussian": "Gaussian",
    "oracle": "oracle",
    "balanced": "balanced",
    "domain": "domain",
    "coverage": "coverage",
    "perplexity": "highest loss",
    "perplexity_median": "median loss",
}
MODEL_COLOURS = ("#0b6e99", "#c4622d", "#1b7f5c", "#7b61c4", "#b5467a", "#c69214")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "grid.color": "#e3e7eb",
    # Same settings, same bytes: no random ids in the SVG.
    "svg.hashsalt": "lethe",
    "svg.fonttype": "none",
}


def save(figure: Figure, *paths: Path) -> None:
    """Writes a figure to .png and .svg files, whole, without a date in them."""
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with whole(path) as part, mpl.rc_context(STYLE):
            figure.savefig(part, format=kind, dpi=150, metadata=metadata)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def heatmap(findings: Findings) -> Figure:
    """Z of every model: tasks by group, examples by domain and mean forgetting."""
    count = len(findings.matrices)
    tasks = len(findings.tasks)
    figure, axes = _panels(count, 1, 10, 1.4 + 0.135 * tasks)
    for axis, (model, z) in zip(axes[:, 0], findings.matrices.items(), strict=True):
        image = heat(axis, z, findings)
        axis.set_title(f"{model}: what each fine-tune forgot")
        figure.colorbar(image, ax=axis, label=findings.measure, pad=0.01, fraction=0.025)
    return figure


def heat(axis: Axes, z: Matrix, findings: Findings, names: bool = True):
    """One Z as an image; white is no change, colours are cut at the 98th percentile."""
    groups = [findings.tasks[task][0] for task in z.tasks]
    row_order = sorted(range(len(z.tasks)), key=lambda row: (groups[row], z.tasks[row]))
    domains = _domains(z, findings)
    means = np.nan_to_num(_nanmean(z.values))
    # An example of which nothing is known, as one that the base model answers wrong, is left out.
    known = np.flatnonzero(np.isfinite(z.values).any(axis=0)).tolist()
    column_order = sorted(known, key=lambda column: (domains[column], -means[column]))
    values = z.values[row_order][:, column_order]
    limit = max(float(np.nanquantile(np.abs(values), 0.98)), 1e-6)
    image = axis.imshow(
        values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
    )
    axis.spines[:].set_visible(False)
    _domain_ticks(axis, [domains[column] for column in column_order])
    axis.set_yticks([])
    if names:
        axis.set_yticks(range(len(row_order)), [z.tasks[row] for row in row_order], fontsize=7)
    axis.tick_params(length=0)
    return image


def _domains(z: Matrix, findings: Findings) -> list[str]:
    known = {example.example_id: example.domain for example in findings.upstream}
    return [known.get(example_id, "upstream examples") for example_id in z.example_ids]


def _domain_ticks(axis: Axes, ordered: list[str]) -> None:
    names = list(dict.fromkeys(ordered))
    starts = [ordered.index(name) for name in names]
    ends = [*starts[1:], len(ordered)]
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    axis.set_xticks(middles, names)
    for start in starts[1:]:
        axis.axvline(start - 0.5, color=INK, linewidth=0.5)


def _nanmean(values: np.ndarray) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=0)
    return np.nansum(values, axis=0) / np.maximum(counts, 1)


def spectrum(findings: Findings) -> Figure:
    """Singular values of Z, as shares of its sum of squares."""
    figure, axes = _panels(1, 1, 6, 3.6)
    axis = axes[0, 0]
    for colour, (model, curve) in zip(
        _model_colours(findings), findings.curves.items(), strict=True
    ):
        squares = np.square(curve[curve.predictor == "svd"].singular_value.to_numpy())
        share = np.maximum(squares / squares.sum(), 1e-6)
        axis.plot(range(1, len(share) + 1), share, "o-", ms=3.5, color=colour, label=model)
    axis.set(yscale="log", xlabel="component", ylabel="share of the sum of squares of Z")
    axis.set_title("Spectrum of Z (uncentred)")
    axis.grid(axis="y")
    axis.legend()
    return figure


def _model_colours(findings: Findings) -> list[str]:
    return [MODEL_COLOURS[i % len(MODEL_COLOURS)] for i in range(len(findings.matrices))]


def rank_curves(findings: Findings) -> Figure:
    """R2 of Z by rank, beside the predictors without factors."""
    figure, axes = _panels(1, 1, 6, 3.6)
    ranks(axes[0, 0], findings)
    return figure


def ranks(axis: Axes, findings: Findings) -> None:
    """R2 by rank of every model; dotted, its additive fit; if measured, its noise floor."""
    for colour, (model, curve) in zip(
        _model_colours(findings), findings.curves.items(), strict=True
    ):
        svd = curve[curve.predictor == "svd"]
        axis.plot(svd["rank"], svd.r2, "o-", ms=3.5, color=colour, label=f"{model}, SVD")
        additive = float(curve[curve.predictor == "additive"].r2.iloc[0])
        label = f"{model}, task + example means"
        axis.axhline(additive, color=colour, linestyle=":", label=label)
        if model in findings.noise:
            _noise_floor(axis, svd, findings.noise[model], colour, model)
    axis.set(xlabel="rank", ylabel="R²", ylim=(0, 1.02))
    axis.set_title("How much of Z a few components explain")
    axis.grid(axis="y")
    axis.legend(loc="lower right")


def _noise_floor(axis: Axes, svd: pd.DataFrame, noise: dict, colour: str, model: str) -> None:
    """Shaded, what another training seed would change; ringed, the last rank above it."""
    ceiling, rank = max(noise["r2_ceiling"], 0.0), noise["rank_above"]["correlated_noise"]
    axis.axhspan(ceiling, 1, color=colour, alpha=0.13, linewidth=0, label=f"{model}, noise")
    if rank:
        axis.plot(rank, svd.r2.iloc[rank - 1], "o", ms=10, markerfacecolor="none", color=colour)
        axis.lines[-1].set_label(f"{model}, rank {rank}: last above noise")


def completion(findings: Findings) -> Figure:
    """RMSE of predicted forgetting by number of probes, for every model and split."""
    splits = list(dict.fromkeys(next(iter(findings.completions.values())).split))
    figure, axes = _panels(len(findings.completions), len(splits), 4.8, 3.5)
    for line, (model, scores) in zip(axes, findings.completions.items(), strict=True):
        for axis, split in zip(line, splits, strict=True):
            errors(axis, scores[scores.split == split], findings.unit)
            axis.set_title(f"{model}, {split.replace('_', '-')}")
    axes[0, 0].legend(ncols=2)
    return figure


def errors(axis: Axes, scores: pd.DataFrame, unit: str) -> None:
    """RMSE by k with 95 percent bootstrap intervals over tasks."""
    chosen = scores[(scores.seed.astype(str) == "all") & (scores.metric == "rmse")]
    # Associations look at no probe; the report's table has them.
    chosen = chosen[(chosen.probes == "random") & chosen.method.isin(LABELS)]
    for method, line in chosen.groupby("method", sort=False):
        colour = COLOURS[method]
        axis.plot(line.k, line.value, "o-", ms=3.5, color=colour, label=LABELS[method])
        axis.fill_between(line.k, line.low, line.high, color=colour, alpha=0.1, linewidth=0)
    ks = sorted(chosen.k.unique())
    axis.set_xscale("log")
    axis.set_xticks(ks, ks)
    axis.minorticks_off()
    axis.set(xlabel="probed examples of the unseen task", ylabel=f"RMSE ({unit})")
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")


def forgetting_by_task(findings: Findings) -> Figure:
    """Mean forgetting and what the task gained, for each fine-tune."""
    height = 1.2 + 0.17 * len(findings.tasks)
    figure, axes = _panels(1, 2, 5.4, height)
    orders = None
    for colour, (model, table) in zip(
        _model_colours(findings), findings.summaries.items(), strict=True
    ):
        orders = table.sort_values("mean_forgetting").task.tolist() if orders is None else orders
        table = table.set_index("task").loc[orders]
        gained = table.eval_loss_before - table.eval_loss_after
        for axis, values in zip(axes[0], (table.mean_forgetting, gained), strict=True):
            axis.plot(values, range(len(values)), "o", ms=4.5, color=colour, label=model)
    axes[0, 0].set_yticks(range(len(orders)), orders, fontsize=7)
    axes[0, 1].set_yticks(range(len(orders)), [])
    axes[0, 0].set(title="forgotten upstream", xlabel=f"mean {findings.measure}")
    axes[0, 1].set(title="learned of the task", xlabel="fall of the task's own eval loss (nats)")
    for axis in axes[0]:
        axis.axvline(0, color=FAINT, linewidth=0.8)
        axis.grid(axis="x")
    axes[0, 0].legend()
    return figure


def replay(findings: Findings) -> Figure:
    """Held-out forgetting by strategy, and its paired difference to random replay."""
    figure, axes = _panels(len(findings.comparisons), 2, 4.8, 2.9)
    for line, (model, table) in zip(axes, findings.comparisons.items(), strict=True):
        strategies(line[0], table, "heldout_forgetting", f"held out: {findings.measure}")
        line[0].set_title(f"{model}, forgetting after replay")
        against_random(line[1], table, findings.unit)
        line[1].set_title("difference to random replay")
    return figure


def strategies(axis: Axes, table: pd.DataFrame, measure: str, label: str) -> None:
    """A bar a strategy with the 95 percent interval over tasks."""
    values = table[measure]
    spread = _spread(values, table[f"{measure}_low"], table[f"{measure}_high"])
    places = range(len(table))
    axis.barh(places, values, color=[COLOURS[name] for name in table.strategy], height=0.65)
    axis.errorbar(values, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=2)
    axis.set_yticks(places, [LABELS[name] for name in table.strategy])
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.grid(axis="x")
    axis.set_axisbelow(True)


def _spread(values: pd.Series, low: pd.Series, high: pd.Series) -> np.ndarray:
    """Lengths (2, n) of error bars; rounding may put an end on the wrong side of the mean."""
    return np.maximum(np.array([values - low, high - values], dtype=float), 0)


def against_random(axis: Axes, table: pd.DataFrame, unit: str) -> None:
    """Paired differences over tasks with 95 percent intervals; left of zero forgets less."""
    others = table[~table.strategy.isin(["random", "none"])].reset_index(drop=True)
    values = others.heldout_forgetting_difference
    ends = (others.heldout_forgetting_difference_low, others.heldout_forgetting_difference_high)
    spread = _spread(values, *ends)
    for place in range(len(others)):
        bar = {"xerr": spread[:, [place]], "color": COLOURS[others.strategy[place]]}
        axis.errorbar(values[place], place, fmt="o", ms=6, capsize=3, **bar)
    axis.axvline(0, color=FAINT, linewidth=0.9)
    axis.set_yticks(range(len(others)), [LABELS[name] for name in others.strategy])
    axis.set_ylim(len(others) - 0.5, -0.5)
    axis.set_xlabel(f"{unit}; left of 0 forgets less")
    axis.locator_params(axis="x", nbins=5)
    axis.grid(axis="x")


def overview(findings: Findings) -> Figure:
    """The four findings of the first model on one picture."""
    model, z = next(iter(findings.matrices.items()))
    figure, axes = _panels(2, 2, 5.2, 3.4)
    image = heat(axes[0, 0], z, findings, names=False)
    figure.colorbar(image, ax=axes[0, 0], label=findings.unit, pad=0.01, fraction=0.04)
    axes[0, 0].set_ylabel(f"{len(z.tasks)} fine-tuning tasks")
    axes[0, 0].set_title("1  What each fine-tune forgets")
    axes[0, 0].tick_params(axis="x", labelrotation=25, labelsize=7)
    ranks(axes[0, 1], findings)
    axes[0, 1].set_title("2  A few components explain it")
    scores = findings.completions[model]
    errors(axes[1, 0], scores[scores.split == "in_domain"], findings.unit)
    axes[1, 0].set_title("3  So few probes predict an unseen task")
    axes[1, 0].legend(ncols=2, fontsize=7)
    if model in findings.comparisons:
        against_random(axes[1, 1], findings.comparisons[model], findings.unit)
        axes[1, 1].set_title("4  Replaying what is predicted, against random")
    else:
        axes[1, 1].set_axis_off()
    return figure


FIGURES: dict[str, Callable[[Findings], Figure]] = {
    "overview": overview,
    "heatmap": heatmap,
    "spectrum": spectrum,
    "rank_curves": rank_curves,
    "completion": completion,
    "forgetting_by_task": forgetting_by_task,
    "replay": replay,
}


def draw(name: str, findings: Findings) -> Figure:
    """The figure of this name."""
    with mpl.rc_context(STYLE):
        return FIGURES[name](findings)
