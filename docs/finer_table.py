"""Prints the tables of measures that are finer than loss, in Markdown.

Run `python docs/finer_table.py docs/lab/tables/NAME` and paste the tables into
docs/lab/finer-than-loss.md. The folder has the tables of a finished experiment
(`docs/collect_tables.py`).
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from markdown_table import print_head, print_line

from lethe.report.finer_section import COLUMNS, finer_lines
from lethe.report.report_page import format_number


def main(folder: Path) -> None:
    """Prints one table for each model of the folder."""
    for file in sorted(folder.glob("*/prediction_changes.parquet")):
        print_head(file.parent.name, *COLUMNS.values())
        for line in finer_lines(pd.read_parquet(file)):
            cells = [_cell(key, line["cells"].get(key)) for key in COLUMNS]
            print_line(line["label"], *cells)
        print()


def _cell(statistic: str, record: dict | None) -> str:
    """A value with its interval, if it has one; `-` for a statistic that a measure lacks."""
    if record is None or not np.isfinite(record["value"]):
        return "-"
    digits = 0 if statistic == "rank_above_shuffled" else 3
    value = format_number(record["value"], digits)
    if not np.isfinite(record["low"]):
        return value
    return f"{value} [{format_number(record['low'])}, {format_number(record['high'])}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
