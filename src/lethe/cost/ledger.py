"""The actual cost of an experiment, next to the estimate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.matrix.rows import Row, read_rows
from lethe.tables import as_text


@dataclass(frozen=True)
class FinishedRow:
    """A row that a job wrote, and the size of its file."""

    row: Row
    file_bytes: int

    @property
    def training_tokens(self) -> float:
        """Tokens that the job trained on.

        A copy of a row trains on nothing, and so does a further measurement of the same weights.
        """
        about = self.row.about
        if about.get("copied") or about.get("measurement"):
            return 0.0
        rate = about.get("training_tokens_per_second", 0.0)
        return rate * about.get("training_seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of the job; 0 for a copy of a row, NaN if the row does not record them."""
        about = self.row.about
        return 0.0 if about.get("copied") else about.get("seconds", float("nan"))


def read_finished_rows(path: Path) -> list[FinishedRow]:
    """Reads the rows of a file; the first has the size of the file, the others 0."""
    rows = read_rows(path)
    sizes = [path.stat().st_size] + [0] * (len(rows) - 1)
    return [FinishedRow(row, size) for row, size in zip(rows, sizes, strict=True)]


def ledger_lines(
    planned: Iterable[Mapping[str, Any]],
    finished: Mapping[tuple[str, str], Sequence[FinishedRow]],
) -> list[dict[str, Any]]:
    """Makes the lines of ledger.csv: the plan's estimate next to the records of finished rows.

    Parameters
    ----------
    planned
        Lines of plan.csv.
    finished
        Rows by (model, rule). Rules that leave no rows (pretraining, directions) have no line.
    """
    lines = []
    for estimate in planned:
        rows = finished.get((estimate["model"], estimate["rule"]))
        if rows:
            lines.append(_ledger_line(estimate, rows))
    return lines


def _ledger_line(estimate: Mapping[str, Any], finished: Sequence[FinishedRow]) -> dict[str, Any]:
    jobs = 0
    seconds = 0.0
    training_tokens = 0.0
    file_bytes = 0
    for one in finished:
        # A further measurement belongs to the job that trained the weights.
        jobs += not one.row.about.get("measurement")
        seconds += one.seconds
        training_tokens += one.training_tokens
        file_bytes += one.file_bytes
    ratio = seconds / estimate["seconds"] if estimate["seconds"] else float("nan")
    # Without a price, plan.csv has no money. The price of an hour is the plan's.
    planned_money = estimate.get("money")
    if planned_money is not None and math.isnan(planned_money):
        planned_money = None
    return {
        "model": estimate["model"],
        "rule": estimate["rule"],
        "jobs_planned": estimate["jobs"],
        "jobs": jobs,
        "seconds_planned": estimate["seconds"],
        "seconds": seconds,
        "ratio": ratio,
        "training_tokens_planned": estimate["training_tokens"],
        "training_tokens": round(training_tokens),
        "disk_mb_planned": estimate["disk_mb"],
        "disk_mb": file_bytes / 1e6,
        "money_planned": planned_money,
        "money": None if planned_money is None else planned_money * ratio,
    }


def ledger_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """Formats the lines of ledger.csv as a table to read."""
    count = "{:,}".format
    size = "{:,.1f}".format
    columns = {
        "model": str,
        "rule": str,
        "jobs_planned": count,
        "jobs": count,
        "seconds_planned": size,
        "seconds": size,
        "ratio": "{:.2f}".format,
        "training_tokens_planned": count,
        "training_tokens": count,
        "disk_mb_planned": size,
        "disk_mb": size,
    }
    if any(line["money"] is not None for line in lines):
        columns |= {"money_planned": "{:,.2f}".format, "money": "{:,.2f}".format}
    return as_text(lines, columns) + "\n"
