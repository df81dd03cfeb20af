"""The report's table of measures that are finer than loss."""

import pandas as pd

from lethe.analysis.finer_measures import RANKS

LABELS = {
    "forgetting": "forgetting (Z)",
    "kl": "KL to the base model (nats)",
    "top1_changed": "other most probable token (share)",
    "top1_lost": "token right before, wrong after (share)",
    "top1_gained": "token wrong before, right after (share)",
    "entropy_change": "rise in entropy (nats)",
    "answer_gained": "answer wrong before, right after (share)",
}
# Statistics of prediction_changes.csv, in the order of the columns.
COLUMNS = {
    "mean": "mean",
    "by_chance": "by chance",
    "r2_additive": "R² of means",
    **{f"r2_rank_{rank}": f"R² rank {rank}" for rank in RANKS},
    "rank_above_shuffled": "components beyond the means",
    "spearman_within": "Spearman with Z, within a task",
    "pearson_tasks": "Pearson with Z, task means",
    "from_forgetting": "explained by Z",
    "to_forgetting": "explains Z",
}


def finer_lines(table: pd.DataFrame) -> list[dict]:
    """One line per measure, with its cells by the columns' names (`COLUMNS`).

    A cell is the record of a statistic with its value and the ends of its interval, which may be
    NaN; a statistic that the table lacks has no cell.
    """
    lines = []
    for measure, part in table.groupby("measure", sort=False):
        cells = {record["statistic"]: record for record in part.to_dict("records")}
        lines.append({"label": LABELS.get(measure, measure), "cells": cells})
    return lines
