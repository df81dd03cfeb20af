"""Prints tables of results, in Markdown, from the files of a finished default experiment.

Run `python docs/results_table.py results/default` and paste the first table into README.md and
those of replay, one per model, into docs/lab/default-experiment.md.
"""

import sys
from functools import partial
from pathlib import Path

import pandas as pd

from lethe.statistics import bootstrap_interval

PROBES = 30


def interval(mean: float, low: float, high: float, digits: int = 3) -> str:
    """A mean with its 95 percent interval, as the table shows it."""
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def forgetting(folder: Path) -> str:
    """Mean forgetting per fine-tune in nats, with its interval over tasks."""
    per_task = pd.read_csv(folder / "rows.csv")["mean_forgetting"].to_numpy()
    return interval(per_task.mean(), *bootstrap_interval(per_task))


def correlation(folder: Path, association: str) -> str:
    """Correlation of an association with Z over all tasks."""
    table = pd.read_csv(folder / "associations.csv")
    line = table.query("association == @association and tasks == 'all'").iloc[0]
    return interval(line.pearson, line.pearson_low, line.pearson_high, digits=2)


def error(folder: Path) -> str:
    """In-domain RMSE in nats from `PROBES` random probes, beside that of the column mean."""
    table = pd.read_csv(folder / "completion.csv", dtype={"seed": str})
    table = table.query(
        "split == 'in_domain' and k == @PROBES and probes == 'random' and seed == 'all' "
        "and metric == 'rmse'"
    ).set_index("method")
    best, usual = table.loc["gaussian"], table.loc["column_mean"]
    return f"{interval(best.value, best.low, best.high)}; column mean {usual.value:.3f}"


def planned_effect(folder: Path, question: str) -> str:
    """Difference in held-out forgetting of a planned comparison, in nats, with Holm's p."""
    table = pd.read_csv(folder / "replay_contrasts.csv")
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


# Column of replay_comparison.csv -> its heading.
REPLAY_COLUMNS = {
    "heldout_forgetting": "held-out forgetting",
    "worst_domain_forgetting": "worst domain",
    "drift": "drift",
    "eval_loss_after": "new-task loss",
}


def main(results: Path) -> None:
    """Prints one line per result and one column per model, then the replay runs of each model."""
    models = sorted(path.parent for path in results.glob("*/completion.csv"))
    print_line("", *[model.name for model in models])
    print("|---" * (len(models) + 1) + "|")
    for name, read in RESULTS.items():
        print_line(name, *[read(model) for model in models])
    for model in models:
        print()
        print_replay(model)


def print_replay(model: Path) -> None:
    """One line per replay run: means over tasks, and the difference to random replay with p."""
    table = pd.read_csv(model / "replay_comparison.csv")
    columns = [column for column in REPLAY_COLUMNS if column in table]
    headings = [REPLAY_COLUMNS[column] for column in columns]
    print_line(model.name, *headings, "held-out difference to random")
    print("|---" * (len(columns) + 2) + "|")
    for _, line in table.iterrows():
        name = "heldout_forgetting_difference"
        effect = interval(line[name], line[f"{name}_low"], line[f"{name}_high"])
        if line.strategy == "random":
            effect = "-"
        else:
            effect += f", p {line[f'{name}_p_holm']:.3f}"
        values = [f"{line[column]:.3f}" for column in columns]
        print_line(line.strategy, *values, effect)


def print_line(*cells: str) -> None:
    """One line of a Markdown table."""
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
