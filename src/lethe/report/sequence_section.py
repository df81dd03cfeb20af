"""The section on sequences in the report: its sentences, its table and its figure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lethe.analysis.sequence_measures import UPSTREAM_MEASURES
from lethe.analysis.sequence_sums import FEWEST_FOR_HALVES
from lethe.report.amounts import format_interval
from lethe.report.figure_style import FAINT, colours_of, label_of, new_panels

# Measures of the table, with their headings.
SEQUENCE_MEASURES = {
    "heldout_forgetting": "held-out forgetting",
    "worst_domain_forgetting": "worst domain",
    "rise_share": "share of rises",
    "rise_mean": "mean rise",
    "drift": "drift",
    "heldout_kl": "KL",
    "acc": "ACC",
    "bwt": "BWT",
    "forgetting": "forgetting of tasks",
    "fwt": "FWT",
    "learning": "learning",
}
# Predictions from single rows, with their labels in the figure.
_PREDICTIONS = {
    "sum": "sum",
    "scaled_sum": "scaled sum",
    "recency": "recency",
    "last_task": "last task alone",
}
_UNIT_WORDS = {"nats": "nats", "exact_match": "of the right answers"}


@dataclass(frozen=True)
class SequenceTables:
    """The tables on the sequences of one model, as `sequence_<name>.csv` has them."""

    steps: pd.DataFrame
    comparison: pd.DataFrame
    additivity: pd.DataFrame
    prediction: pd.DataFrame
    choice: pd.DataFrame

    @property
    def reference_run(self) -> str:
        """The run that the others are compared with."""
        if "reference" in self.comparison:
            return str(self.comparison.reference.iloc[0])
        # A table of an older version does not name it.
        runs = list(dict.fromkeys(self.steps.run))
        return "none" if "none" in runs else runs[0]

    @property
    def upstream_unit(self) -> str:
        """Unit of upstream forgetting: `nats`, or `exact_match` for right answers lost."""
        of_upstream = self.comparison[self.comparison.measure == "heldout_forgetting"]
        return "nats" if of_upstream.empty else str(of_upstream.iloc[0].unit)

    @property
    def upstream_words(self) -> str:
        """The unit of upstream forgetting as a sentence names it."""
        return _UNIT_WORDS[self.upstream_unit]

    def value(self, run: str, measure: str, unit: str = "nats") -> pd.Series | None:
        """The line of a run and a measure in the comparison; None if it has none.

        Measures of upstream examples have one unit each, whichever unit you name.
        """
        table = self.comparison
        of_run = (table.run == run) & (table.measure == measure)
        if measure not in UPSTREAM_MEASURES:
            of_run &= table.unit == unit
        lines = table[of_run]
        return None if lines.empty else lines.iloc[0]

    def measures(self) -> dict[str, str]:
        """The measures of the page's table that some run has, with their headings."""
        measured = set(self.comparison.measure)
        return {key: words for key, words in SEQUENCE_MEASURES.items() if key in measured}

    def lines(self, unit: str = "nats") -> list[dict[str, Any]]:
        """The lines of the page's table: one per run, with all measures."""
        lines = []
        for run in dict.fromkeys(self.comparison.run):
            line: dict[str, Any] = {"run": run, "upstream_unit": self.upstream_unit}
            for measure in SEQUENCE_MEASURES:
                over_orders = self.value(run, measure, unit)
                if over_orders is None:
                    over_orders = self.value(run, measure)
                line[measure] = None if over_orders is None else float(over_orders["mean"])
                line[f"{measure}_sd"] = None if over_orders is None else float(over_orders["sd"])
                if over_orders is not None:
                    line["orders"] = int(over_orders["orders"])
            lines.append(line)
        return lines


def sequence_headlines(tables: SequenceTables) -> list[str]:
    """States what sequences forget, whether rows add up, and whether an order can be chosen."""
    run = tables.reference_run
    return [
        *_forgetting_headlines(tables, run),
        *_sum_headlines(tables, run),
        *_prediction_headlines(tables, run),
        *_choice_headlines(tables, run),
    ]


def _forgetting_headlines(tables: SequenceTables, run: str) -> list[str]:
    reference = tables.value(run, "heldout_forgetting")
    if tables.upstream_unit == "nats":
        lost = f"the held-out upstream loss is {_above(reference['mean'])} that of the base model"
    else:
        lost = f"{reference['mean']:.3f} of the right held-out upstream answers are lost"
    sentences = [
        f"After {_tasks_in_a_row(tables.steps)} in a row ({label_of(run)}), {lost} "
        f"({_over_orders(reference)})."
    ]
    others = []
    for other in dict.fromkeys(tables.steps.run):
        line = tables.value(other, "heldout_forgetting")
        if other != run and np.isfinite(line.get("difference", np.nan)):
            others.append(
                f"{label_of(other)} {line['mean']:+z.3f} {tables.upstream_words} "
                f"({_over_orders(line)}, difference {line['difference']:+z.3f})"
            )
    if others:
        sentences.append(f"The other runs along the same orders: {'; '.join(others)}.")
    return sentences


def _tasks_in_a_row(steps: pd.DataFrame) -> str:
    """The number of tasks of an order, from the shortest to the longest."""
    lengths = steps.groupby("order").step.max()
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < longest:
        return f"{shortest} to {longest} tasks"
    return f"{longest} tasks" if longest > 1 else "1 task"


def _over_orders(line: pd.Series) -> str:
    """The spread over orders and their number; one order has no spread."""
    orders = int(line["orders"])
    return "1 order" if orders == 1 else f"sd {line['sd']:.3f} over {orders} orders"


def _above(difference: float, unit: str = "nats") -> str:
    """A difference as words without a sign: so many nats, or right answers, above or below."""
    side = "below" if difference < 0 else "above"
    return f"{abs(difference):.3f} {unit} {side}"


def _sum_headlines(tables: SequenceTables, run: str) -> list[str]:
    table = tables.additivity
    pooled = table[(table.run == run) & (table.order == "all")].set_index("prediction")
    values = []
    for name, label in _PREDICTIONS.items():
        if name in pooled.index:
            line = pooled.loc[name]
            values.append(f"{label} {line.r2:.2f} {format_interval(line.low, line.high, '.2f')}")
    if not values:
        return []
    return [f"R² of a sequence's rows predicted from its tasks' own rows: {', '.join(values)}."]


def _prediction_headlines(tables: SequenceTables, run: str) -> list[str]:
    table = tables.prediction
    pooled = table[(table.run == run) & (table.order == "all")].set_index("method")
    values = []
    for name, line in pooled.sort_values("rmse").iterrows():
        interval = format_interval(line.rmse_low, line.rmse_high, ".3f")
        values.append(f"{label_of(str(name))} {line.rmse:.3f} {interval}")
    if not values:
        return []
    unit = "nats" if tables.upstream_unit == "nats" else "right answers lost"
    return [f"RMSE in {unit} of a sequence's rows, by prediction: {', '.join(values)}."]


def _choice_headlines(tables: SequenceTables, run: str) -> list[str]:
    table = tables.choice
    judged = table[(table.run == run) & (table.order == "all")]
    if judged.empty or "chosen" not in judged:
        return []
    line = judged.iloc[0]
    orders = table[(table.run == run) & (table.order != "all")]
    # below_mean is positive if the chosen order forgets less than the mean order.
    effect = (
        f"Order chosen from the rows of other orders: {line.chosen}, {line.above_best:.3f} "
        f"{tables.upstream_words} above the best of {len(orders)} and "
        f"{_above(-line.below_mean, tables.upstream_words)} their mean"
    )
    spread = orders.measured.max() - orders.measured.min()
    # Predictions that leave one order out rank the orders backwards if all are alike
    # (lethe.analysis.sequence_sums), so their correlation is not shown.
    halves = line.get("spearman_of_halves", float("nan"))
    ranking = f"; a rank correlation needs at least {FEWEST_FOR_HALVES} orders"
    if np.isfinite(halves):
        ranking = (
            "; rank correlation of predicted and measured forgetting in the half of the orders on "
            f"which nothing was fitted: {halves:.2f}"
        )
    return [f"{effect}{ranking}. The orders span {spread:.3f} {tables.upstream_words}."]


def draw_sequences(tables: Mapping[str, SequenceTables]) -> Figure:
    """Draws, per model, held-out forgetting by step, and R2 of the rows that are predicted.

    The figure is empty for an experiment without sequences.
    """
    figure, axes = new_panels(max(1, len(tables)), 2, width=5.2, height=3.4)
    if not tables:
        for axis in axes.flat:
            axis.set_axis_off()
        return figure
    for (steps, sums), (model, of_model) in zip(axes, tables.items(), strict=True):
        _draw_steps(steps, of_model)
        steps.set_title(f"{model}: forgetting along an order")
        _draw_sums(sums, of_model)
        sums.set_title(f"{model}: rows predicted from single tasks")
    return figure


def _draw_steps(axis: Axes, tables: SequenceTables) -> None:
    """Mean over orders by step, thin lines for single orders, dotted the sum of single rows."""
    runs = list(dict.fromkeys(tables.steps.run))
    for run, colour in zip(runs, colours_of(runs), strict=True):
        of_run = tables.steps[tables.steps.run == run]
        for _, order in of_run.groupby(["order", "seed"]):
            axis.plot(order.step, order.heldout_forgetting, color=colour, alpha=0.25, lw=0.7)
        means = of_run.groupby("step").heldout_forgetting.mean()
        axis.plot(means.index, means, "o-", ms=3.5, color=colour, label=label_of(run))
    of_run = tables.steps[tables.steps.run == tables.reference_run]
    # Tables of earlier versions have the sum over all upstream examples only.
    if "heldout_sum_of_single" in of_run:
        sums = of_run.groupby("step").heldout_sum_of_single.mean()
        axis.plot(sums.index, sums, ":", color=FAINT, label="sum of single rows")
    axis.axhline(0, color=FAINT, linewidth=0.8)
    label = "rise in loss (nats)" if tables.upstream_unit == "nats" else "right answers lost"
    axis.set(xlabel="tasks learned", ylabel=f"held out: {label}")
    axis.grid(axis="y")
    axis.legend(fontsize=7)


def _draw_sums(axis: Axes, tables: SequenceTables) -> None:
    """R2 of each prediction of the reference run: one point per order, a line at the mean."""
    table = tables.additivity
    of_run = table[(table.run == tables.reference_run) & (table.step.astype(str) == "all")]
    names = [name for name in _PREDICTIONS if name in set(of_run.prediction)]
    for position, name in enumerate(names):
        values = of_run[(of_run.prediction == name) & (of_run.order != "all")].r2
        axis.plot([position] * len(values), values, "o", ms=4, color=FAINT, alpha=0.7)
        axis.hlines(values.mean(), position - 0.25, position + 0.25, color="#0b6e99", lw=2)
    axis.set_xticks(range(len(names)), [_PREDICTIONS[name] for name in names])
    axis.axhline(0, color=FAINT, linewidth=0.8)
    axis.set(ylabel="R² of the rows, one point per order", ylim=(None, 1.02))
    axis.grid(axis="y")
