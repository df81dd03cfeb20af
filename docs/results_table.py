"""Prints tables of results, in Markdown, from the files of a finished experiment.

Run `python docs/results_table.py results/default` and paste the first table into README.md and
those of replay into docs/lab/default-experiment.md. For a run whose tables are under version
control (`docs/collect_tables.py`), give their folder:
`python docs/results_table.py docs/lab/tables/NAME`.
"""

import sys
from functools import partial
from pathlib import Path

import pandas as pd
from markdown_table import print_head, print_line

from lethe.report.sequence_section import SEQUENCE_MEASURES
from lethe.statistics import bootstrap_interval

PROBES = 30


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of a finished run, or the copy of it that is under version control."""
    copy = folder / f"{name}.parquet"
    if copy.exists():
        return pd.read_parquet(copy)
    return pd.read_csv(folder / f"{name}.csv", dtype={"seed": str})


def has_table(folder: Path, name: str) -> bool:
    """Whether the experiment made this table."""
    return any((folder / f"{name}.{kind}").exists() for kind in ("parquet", "csv"))


def interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """A mean with its 95 percent interval, as the table shows it; alone if it has none."""
    if pd.isna(low):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def forgetting(folder: Path) -> str:
    """Mean forgetting per fine-tune in nats, with its interval over tasks."""
    per_task = read_table(folder, "rows")["mean_forgetting"].to_numpy()
    return interval(per_task.mean(), *bootstrap_interval(per_task))


def correlation(folder: Path, association: str) -> str:
    """Correlation of an association with Z over all tasks."""
    table = read_table(folder, "associations")
    line = table.query("association == @association and tasks == 'all'").iloc[0]
    return interval(line.pearson, line.pearson_low, line.pearson_high, digits=2)


def error(folder: Path) -> str:
    """In-domain RMSE in nats from `PROBES` random probes, beside that of the column mean."""
    table = read_table(folder, "completion")
    table = table.query(
        "split == 'in_domain' and k == @PROBES and probes == 'random' and seed == 'all' "
        "and metric == 'rmse'"
    ).set_index("method")
    best, usual = table.loc["gaussian"], table.loc["column_mean"]
    return f"{interval(best.value, best.low, best.high)}; column mean {usual.value:.3f}"


def planned_effect(folder: Path, question: str) -> str:
    """Difference in held-out forgetting of a planned comparison, in nats, with Holm's p."""
    table = read_table(folder, "replay_contrasts")
    line = table.query("question == @question and measure == 'heldout_forgetting'").iloc[0]
    means = f"{line['mean']:.3f} against {line['reference_mean']:.3f}"
    return f"{means}: {interval(line.difference, line.low, line.high)}, p {line.p_holm:.3f}"


# Label of each result -> the function that reads it from a model's folder.
RESULTS = {
    "Forgetting per fine-tune, mean of 29 tasks": forgetting,
    "Correlation of text similarity with Z": partial(correlation, association="text_tfidf"),
    "Error (RMSE) of the prediction for unseen tasks, 30 probes": error,
    "Forgetting after replay of the base model's answers, against random text": partial(
        planned_effect, question="default"
    ),
    "The same objective, examples chosen by prediction, compared with at random": partial(
        planned_effect, question="selection"
    ),
}


# Measure of the replay tables -> its name in the text.
MEASURES = {
    "heldout_forgetting": "held-out forgetting",
    "worst_domain_forgetting": "worst domain",
    "rise_share": "share of rises",
    "rise_mean": "mean of the rises",
    "drift": "drift",
    "heldout_kl": "held-out KL",
    "eval_loss_after": "new-task loss",
}
# Measures of the means and of the planned comparisons, and those of rise and drift.
COMPARED = [
    "heldout_forgetting",
    "worst_domain_forgetting",
    "drift",
    "heldout_kl",
    "eval_loss_after",
]
RISE_AND_DRIFT = ["heldout_forgetting", "rise_share", "rise_mean", "drift", "heldout_kl"]
# Measures of the comparisons at the same new-task loss; the files have all measures.
AT_EQUAL_LOSS = ["heldout_forgetting", "worst_domain_forgetting", "drift"]


def main(results: Path) -> None:
    """Prints one line per result and one column per model, then the replay runs of each model."""
    sequenced = sorted(path for path in results.iterdir() if has_table(path, "sequence_comparison"))
    for model in sequenced:
        print_sequences(model)
    models = sorted(path for path in results.iterdir() if has_table(path, "replay_comparison"))
    if not models:
        return
    if all(has_table(model, "associations") for model in models):
        print_results(models)
    for model in models:
        for print_table in (
            print_replay,
            print_cost_and_dose,
            print_tasks,
            print_rise_and_drift,
            print_routing,
            print_contrasts,
            print_at_equal_loss,
            print_advice,
        ):
            print()
            print_table(model)


def print_results(models: list[Path]) -> None:
    """One line per result of `RESULTS`, one column per model."""
    print_head("", *[model.name for model in models])
    for name, read in RESULTS.items():
        print_line(name, *[read(model) for model in models])


def print_replay(model: Path) -> None:
    """One line per replay run: means over tasks, and the difference to random replay with p."""
    table = read_table(model, "replay_comparison")
    columns = [column for column in COMPARED if column in table]
    headings = [MEASURES[column] for column in columns]
    print_head(model.name, *headings, "held-out difference to random")
    for _, line in table.iterrows():
        name = "heldout_forgetting_difference"
        effect = interval(line[name], line[f"{name}_low"], line[f"{name}_high"])
        if line.strategy == "random":
            effect = "-"
        else:
            effect += f", p {p_value(line[f'{name}_p_holm'])}"
        values = [f"{line[column]:.3f}" for column in columns]
        print_line(line.strategy, *values, effect)


def print_cost_and_dose(model: Path) -> None:
    """One line per replay run: the task that pays most, and how much of the training is replay."""
    table = read_table(model, "replay_comparison")
    runs = read_table(model, "replay").groupby("strategy").replayed_token_share
    print_head(
        model.name,
        "new-task loss minus that of random: largest, and its task",
        "loss tokens that are replayed, percent: mean, least and most over the runs",
        "draws that are random in effect, percent",
    )
    for _, line in table.iterrows():
        largest = line.eval_loss_after_largest_difference
        task = line.eval_loss_after_largest_difference_task
        shares = 100 * runs.get_group(line.strategy)
        is_random = line.get("random_in_effect", float("nan"))
        print_line(
            line.strategy,
            "-" if line.strategy == "random" else f"{largest:+.3f} {task}",
            f"{shares.mean():.0f}, {shares.min():.0f}, {shares.max():.0f}" if shares.any() else "-",
            "-" if pd.isna(is_random) else f"{100 * is_random:.0f}",
        )


def print_tasks(model: Path) -> None:
    """One line per task: the new-task loss without replay and of the planned runs."""
    contrasts = read_table(model, "replay_contrasts")
    compared = [*contrasts.reference, *contrasts.run]
    losses = read_table(model, "replay").groupby(["task", "strategy"]).eval_loss_after.mean()
    losses = losses.unstack()
    runs = [run for run in dict.fromkeys(["none", *compared]) if run in losses]
    print_head(f"{model.name}, new-task loss", *runs)
    for task, line in losses[runs].iterrows():
        print_line(task, *[f"{value:.3f}" for value in line])
    if "random-text" in losses:
        above = (losses[runs].sub(losses["random-text"], axis=0)).max()
        print_line("largest minus random-text", *[f"{value:+.3f}" for value in above])


def mean_over_tasks(line: pd.Series, column: str) -> str:
    """A mean of a replay run with its interval; `-` if nothing was measured, or nothing rose."""
    if pd.isna(line[column]):
        return "-"
    return interval(line[column], line[f"{column}_low"], line[f"{column}_high"])


def print_rise_and_drift(model: Path) -> None:
    """One line per replay run: how much held-out examples rise and change, with intervals."""
    table = read_table(model, "replay_comparison")
    columns = [column for column in RISE_AND_DRIFT if column in table]
    print_head(model.name, *[MEASURES[column] for column in columns])
    for _, line in table.iterrows():
        print_line(line.strategy, *[mean_over_tasks(line, column) for column in columns])


def print_routing(model: Path) -> None:
    """One line per run of an experiment with memories or routers: means with their intervals.

    The last two columns are paired differences of the new-task loss, by task.
    """
    table = read_table(model, "replay_comparison")
    if "memory_bytes" not in table:
        return
    runs = read_table(model, "replay")
    losses = runs.groupby(["strategy", "task"]).eval_loss_after.mean().unstack()
    references = [name for name in ("none", "full-routed") if name in losses.index]
    headings = ["held-out forgetting", "new-task loss", "held-out routed", "own routed", "KB"]
    headings += [f"new-task loss minus {name}" for name in references]
    print_head(model.name, *headings)
    for _, line in table.iterrows():
        cells = []
        for key in ("heldout_forgetting", "eval_loss_after", "heldout_routed", "eval_routed"):
            cells.append(mean_over_tasks(line, key))
        size = f"{line.memory_bytes / 1000:.0f}" if pd.notna(line.memory_bytes) else "-"
        cells.append(size)
        for name in references:
            by_task = (losses.loc[line.strategy] - losses.loc[name]).to_numpy()
            effect = interval(by_task.mean(), *bootstrap_interval(by_task))
            cells.append("-" if name == line.strategy else effect)
        print_line(line.strategy, *cells)


def print_sequences(model: Path) -> None:
    """The measures of each run, then the predictions of its rows and the choice of an order."""
    comparison = read_table(model, "sequence_comparison")
    comparison = comparison[comparison.unit != "exact_match"].set_index(["run", "measure"])
    print()
    measured = {measure for _, measure in comparison.index}
    columns = {key: words for key, words in SEQUENCE_MEASURES.items() if key in measured}
    print_head(model.name, "orders", *columns.values(), "held-out difference to none")
    for run in dict.fromkeys(run for run, _ in comparison.index):
        values = []
        for measure in columns:
            cell = "-"
            if (run, measure) in comparison.index:
                line = comparison.loc[run, measure]
                cell = f"{line['mean']:.3f}"
                if pd.notna(line.sd):
                    cell += f" ({line.sd:.3f})"
            values.append(cell)
        line = comparison.loc[run, "heldout_forgetting"]
        effect = "-"
        if pd.notna(line.difference):
            effect = interval(line.difference, line.difference_low, line.difference_high)
        print_line(run, str(int(line.orders)), *values, effect)
    for name, column, value in (
        ("additivity", "prediction", "r2"),
        ("prediction", "method", "rmse"),
    ):
        table = read_table(model, f"sequence_{name}")
        print_pooled(table[table.order == "all"], column, value, title=model.name)
    choice = read_table(model, "sequence_choice")
    for _, line in choice[choice.order == "all"].iterrows():
        print()
        halves = ""
        if pd.notna(line.get("spearman_of_halves")):
            halves = f", on orders of the other half {line.spearman_of_halves:.2f}"
        print(
            f"Choice of an order, {model.name}, {line.run}: rank correlation {line.spearman:.2f} "
            f"(p {p_value(line.p)}){halves}; chosen {line.chosen}, {line.above_best:.3f} nats "
            f"above the best, {line.below_mean:+.3f} below the mean."
        )


def print_pooled(table: pd.DataFrame, column: str, value: str, *, title: str) -> None:
    """Means over orders with their intervals: one line per prediction, one column per run."""
    runs = list(dict.fromkeys(table.run))
    low, high = ("low", "high") if value == "r2" else (f"{value}_low", f"{value}_high")
    print()
    print_head(f"{title}, {value}", *runs)
    for name in dict.fromkeys(table[column]):
        cells = []
        for run in runs:
            line = table[(table[column] == name) & (table.run == run)].iloc[0]
            cells.append(interval(line[value], line[low], line[high]))
        print_line(name, *cells)


def print_contrasts(model: Path) -> None:
    """One line per planned comparison and measure, with the task that it serves worst."""
    table = read_table(model, "replay_contrasts")
    print_head(
        model.name,
        "measure",
        "means",
        "difference",
        "over tasks, seeds and examples",
        "p (Holm)",
        "lower on",
        "worst task",
    )
    for _, line in table.iterrows():
        both = "-"
        if pd.notna(line.get("two_level_low")):
            both = f"[{line.two_level_low:.4f}, {line.two_level_high:.4f}]"
        print_line(
            f"{line.run} - {line.reference}",
            MEASURES[line.measure],
            f"{line['mean']:.3f} / {line.reference_mean:.3f}",
            interval(line.difference, line.low, line.high, digits=4),
            both,
            p_value(line.p_holm),
            f"{line.tasks_lower} of {line.tasks}",
            f"{line.largest_difference_task} {line.largest_difference:+.3f}",
        )


def print_at_equal_loss(model: Path) -> None:
    """One line per run: its distance to the frontier of random replay at its new-task loss."""
    if not has_table(model, "replay_frontier"):
        return
    table = read_table(model, "replay_frontier")
    print_head(
        model.name,
        "frontier",
        "measure",
        "run",
        "frontier at that loss",
        "difference",
        "p",
        "task by task",
        "p",
        "lower on",
    )
    table = table[table.frontier_value.notna() & table.measure.isin(AT_EQUAL_LOSS)]
    for _, line in table.iterrows():
        print_line(
            line.strategy,
            line.frontier,
            MEASURES[line.measure],
            f"{line.value:.3f}",
            f"{line.frontier_value:.3f}",
            interval(line.difference, line.low, line.high, digits=4),
            p_value(line.p),
            interval(line.task_difference, line.task_low, line.task_high, digits=4),
            p_value(line.task_p),
            f"{line.tasks_lower} of {line.task_count}",
        )


def print_advice(model: Path) -> None:
    """One line per trade and reference: what the advised runs cost, over the tasks."""
    if not has_table(model, "replay_advice_score"):
        return
    table = read_table(model, "replay_advice_score")
    advised = read_table(model, "replay_advice").groupby("trade").run
    print_head(
        f"{model.name}, nats of new-task loss per nat kept",
        "reference",
        "expected cost",
        "cost",
        "cost of the reference",
        "difference",
        "lower on",
        "p",
        "advised most",
    )
    for _, line in table.iterrows():
        chosen = advised.get_group(line.trade).value_counts()
        print_line(
            f"{line.trade:g}",
            line.reference,
            f"{line.expected_cost:.3f}",
            f"{line.cost:.3f}",
            f"{line.reference_cost:.3f}",
            interval(line.difference, line.low, line.high),
            f"{line.tasks_lower} of {line.tasks}",
            p_value(line.p),
            f"{chosen.index[0]} ({chosen.iloc[0]})",
        )


def p_value(p: float) -> str:
    """A p value with two digits, as an exponent where it is small; `-` if there is none."""
    if pd.isna(p):
        return "-"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
