"""The small CSV tables between the rows and the report."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lethe.errors import LetheError
from lethe.files import atomic_write


def write_csv(path: Path | str, records: Sequence[dict[str, Any]]) -> None:
    """Writes records, whole or not at all; a key missing in one is an empty cell.

    Raises
    ------
    LetheError
        If there is no record.
    """
    if not records:
        raise LetheError(f"{path}: there is nothing to write")
    columns = list(dict.fromkeys(key for record in records for key in record))
    with atomic_write(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in r.items()} for r in records)


def _cell(value: Any) -> Any:
    # Seven digits: what float32 losses can tell apart, and the same text on every run.
    return f"{value:.7g}" if isinstance(value, float | np.floating) else value


def as_text(
    records: Sequence[Mapping[str, Any]], written: Mapping[str, Callable[[Any], str]]
) -> str:
    """A table to read: the columns of `written`, each value written by its function."""
    table = [[column.replace("_", " ") for column in written]]
    for record in records:
        cells = [(record.get(key), write) for key, write in written.items()]
        table.append(["-" if value is None else write(value) for value, write in cells])
    widths = [max(len(line[i]) for line in table) for i in range(len(written))]
    numbers = [not isinstance(records[0].get(key), str) for key in written]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in table
    )
