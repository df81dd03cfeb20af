"""The small CSV tables between the rows and the report."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lethe.errors import LetheError
from lethe.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

# Columns of text. All other columns hold numbers.
TEXT_COLUMNS = (
    "task",
    "group",
    "split",
    "strategy",
    "method",
    "metric",
    "association",
    "statistic",
    "question",
    "run",
    "reference",
    "measure",
    "status",
    "frontier",
    "order",
    "prediction",
    "unit",
    "chosen",
    "worst_domain",
    "lethe_version",
    "largest_difference_task",
    "eval_loss_after_largest_difference_task",
    "kind",
    "end",
    "name",
    "domain",
    "model",
    "rule",
    "way",
    "source",
    "target",
)
# Spreadsheets skip a tab or a line break before a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")


def write_csv(path: Path | str, records: Sequence[dict[str, Any]]) -> None:
    """Writes records atomically; a key that a record lacks is an empty cell.

    Text that a spreadsheet would run as a formula, because it begins with = + - or @, is written
    with an apostrophe before it.

    Raises
    ------
    LetheError
        If there is no record.
    """
    # Imported here because pandas takes a third of a second, and jobs that train do without it.
    import pandas as pd

    if not records:
        raise LetheError(f"{path}: there is nothing to write")
    columns: dict[str, list] = {}
    for record in records:
        for key in record:
            columns.setdefault(key, [])
    for key, cells in columns.items():
        for record in records:
            cells.append(_cell(record.get(key)))
    frame = pd.DataFrame(columns, dtype=object)
    with atomic_write(path) as part:
        frame.to_csv(part, index=False, lineterminator="\n", encoding="utf-8")


def read_csv(path: Path | str) -> "pd.DataFrame":
    """Reads a table that `write_csv` wrote.

    The cells of `TEXT_COLUMNS` are the text that was written, even if they look like numbers or are
    `NA` or `null`. In all other columns, an empty cell and `nan` are NaN.
    """
    import pandas as pd

    columns = pd.read_csv(path, nrows=0).columns
    texts = columns.intersection(TEXT_COLUMNS)
    table = pd.read_csv(
        path,
        dtype=dict.fromkeys(texts, str),
        keep_default_na=False,
        na_values={column: ["", "nan"] for column in columns.difference(TEXT_COLUMNS)},
    )
    for column in texts:
        table[column] = table[column].map(_as_written)
    return table


def _cell(value: Any) -> Any:
    # Seven digits distinguish all float32 losses, and give the same text on every run.
    if isinstance(value, float | np.floating):
        return f"{value:.7g}"
    if not isinstance(value, str):
        return value
    # pandas does not quote a carriage return, which readers take for the end of the line.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if _needs_apostrophe(text) else text


def _needs_apostrophe(text: str) -> bool:
    """Whether text is written with an apostrophe before it: a formula, or such text itself."""
    formula = text.lstrip("'")
    return formula.startswith(FORMULA_STARTS) and not _is_number(formula)


def _as_written(cell: str) -> str:
    """The text of a cell that `write_csv` wrote."""
    return cell[1:] if cell.startswith("'") and _needs_apostrophe(cell[1:]) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_text(
    records: Sequence[Mapping[str, Any]], columns: Mapping[str, Callable[[Any], str]]
) -> str:
    """A table to read, text to the left and numbers to the right.

    Written here because `DataFrame.to_string` aligns all columns to the right.

    Parameters
    ----------
    columns
        The keys to show, each with the function that turns its values into text. A missing value
        is shown as "-".
    """
    lines = [""] * (len(records) + 1)
    for key, to_text in columns.items():
        cells = [key.replace("_", " ")]
        for record in records:
            value = record.get(key)
            cells.append("-" if value is None else to_text(value))
        width = max(len(cell) for cell in cells)
        is_text = isinstance(records[0].get(key), str)
        for number, cell in enumerate(cells):
            lines[number] += (cell.ljust(width) if is_text else cell.rjust(width)) + "  "
    return "\n".join(line.rstrip() for line in lines)
