"""CSV read strictly: every line has as many cells as the header, and every quote is closed."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# The csv module refuses cells above 131,072 characters by default; this is the largest limit that
# it accepts on every platform.
LONGEST_CELL = 2**31 - 1


class CsvError(ValueError):
    """A CSV file is malformed; the message names the line."""


@dataclass(frozen=True)
class CsvLine:
    """The cells of one record and the line of the file on which it begins, counted from 1."""

    number: int
    cells: list[str]


def split_csv(lines: Iterable[str]) -> Iterator[CsvLine]:
    """Splits the lines of a CSV file into cells. Empty lines are skipped.

    Parameters
    ----------
    lines
        Lines with their line breaks, as a file opened with `newline=""` gives them.

    Raises
    ------
    CsvError
        If a quote is not closed or is followed by something other than a comma.
    """
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(lines, strict=True)
    first_line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise CsvError(
                f"line {first_line}: {error}; a value with a comma, a quote or a line break stands "
                'in double quotes, and a quote inside it is doubled ("")'
            )
        if cells:
            yield CsvLine(first_line, cells)
        first_line = reader.line_num + 1


def header_problem(columns: list[str]) -> str | None:
    """The reason why a header is ambiguous, if it is."""
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        return f"the header names the column(s) {repeated} twice; rename one"
    return None


def shape_problem(line: CsvLine, columns: list[str]) -> str | None:
    """The reason why a line does not fit the header, if it does not."""
    count = len(line.cells)
    if count == len(columns):
        return None
    hint = ""
    if count > len(columns):
        hint = "; a value that holds a comma must stand in double quotes"
    return f"line {line.number}: {count} cell(s), but the header names {len(columns)}{hint}"
