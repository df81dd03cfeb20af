"""Prints how each replay strategy compares with random replay, over weights and ratios.

Run `python docs/frontiers_table.py docs/lab/tables/replay-frontiers` and paste the tables into
docs/lab/replay-frontiers.md. The folder has the tables of a finished experiment
(`docs/collect_tables.py`).
"""

import json
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from markdown_table import print_head, print_line
from results_table import MEASURES, interval, read_table

from lethe.config.replay_settings import Replay

# Weight and ratio of a column -> its heading.
COLUMNS = {
    (2, 0.125): "1 in 8, weight 2",
    (4, 0.125): "1 in 8, weight 4",
    (8, 0.125): "1 in 8, weight 8",
    (4, 0.03125): "1 in 32, weight 4",
    (4, 0.25): "1 in 4, weight 4",
}
# Measures of the distances to the frontier, one table each.
AT_EQUAL_LOSS = ("heldout_forgetting", "worst_domain_forgetting", "heldout_kl")


def main(folder: Path) -> None:
    """Prints the means of every strategy and its distances to the frontier, for each model."""
    for file in sorted(folder.glob("*/replay_frontier.parquet")):
        runs = runs_by_strategy(file)
        print_means(file.parent, runs)
        for measure in AT_EQUAL_LOSS:
            print()
            print_distances(file.parent, runs, measure)
        print()


def runs_by_strategy(file: Path) -> dict[str, dict[tuple[float, float], str]]:
    """Strategy -> weight and ratio -> name of the run, by the settings that made a kept table."""
    made_by = json.loads(pq.read_schema(file).metadata[b"made_by"])
    runs: dict[str, dict[tuple[float, float], str]] = {}
    for run in Replay.model_validate(made_by["settings"]["replay"]).results():
        if run.replays:
            runs.setdefault(run.strategy, {})[run.weight, run.ratio] = run.name
    return runs


def print_means(model: Path, runs: dict[str, dict[tuple[float, float], str]]) -> None:
    """Held-out forgetting and new-task loss, one line per strategy and one column per setting."""
    table = read_table(model, "replay_comparison").set_index("strategy")
    print_head(f"{model.name}, held-out forgetting and new-task loss", *COLUMNS.values())
    print_line("none", *[_means(table.loc["none"])] * len(COLUMNS))
    for strategy, by_setting in runs.items():
        print_line(strategy, *[_means(table.loc[by_setting[column]]) for column in COLUMNS])


def _means(line: pd.Series) -> str:
    return f"{line.heldout_forgetting:.3f}, {line.eval_loss_after:.3f}"


def print_distances(
    model: Path, runs: dict[str, dict[tuple[float, float], str]], measure: str
) -> None:
    """Differences to random replay of as many examples at the same new-task loss."""
    table = read_table(model, "replay_frontier")
    # The other frontier joins all ratios.
    of_one_ratio = table.frontier.str.contains("1 in")
    table = table[of_one_ratio & (table.measure == measure)].set_index("strategy")
    print_head(f"{model.name}, {MEASURES[measure]} minus that of random replay", *COLUMNS.values())
    for strategy, by_setting in runs.items():
        print_line(strategy, *[_distance(table.loc[by_setting[column]]) for column in COLUMNS])


def _distance(line: pd.Series) -> str:
    """A distance with its interval; `-` beside the ends of the frontier."""
    if pd.isna(line.difference):
        return "-"
    return interval(line.difference, line.low, line.high, digits=4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
