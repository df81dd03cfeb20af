"""`lethe FILE ...` prints the settings, versions and data that a file was made with."""

import json
import sys
from pathlib import Path

import numpy as np

from lethe.errors import LetheError
from lethe.matrix import rows

USAGE = """usage: lethe FILE ...
Prints what made a row, base losses, a replay run or a Z."""


def describe(path: Path) -> str:
    """Settings and facts of a row, base losses, a replay run, or a Z with its rows beside it.

    Raises
    ------
    LetheError
        If the file is none of these, or was changed after it was written.
    """
    if path.name == "Z.parquet":
        return "\n\n".join(describe(row) for row in rows_of(path))
    row = rows.read_row(path)
    measured = int(np.isfinite(row.forgetting).sum())
    if row.answers is not None:
        lost = int(np.nansum(row.forgetting))
        summary = f"{lost} of {measured} right answers lost"
    else:
        mean = float(np.nanmean(row.forgetting)) if measured else float("nan")
        summary = f"mean forgetting {mean:.4f} nats"
    content = json.dumps({"settings": row.settings, "about": row.about}, indent=1, sort_keys=True)
    return (
        f"{path}: {len(row.example_ids)} examples, {summary}, content as it was written\n{content}"
    )


def rows_of(path: Path) -> list[Path]:
    """The row files that a Z was gathered from.

    Raises
    ------
    LetheError
        If there are none beside it.
    """
    folder = path.parent / "rows"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise LetheError(f"{path}: there are no rows beside it, in {folder}")
    return files


def main(arguments: list[str] | None = None) -> int:
    """Describes each file, by default those of the command line; returns the exit status."""
    if arguments is None:
        arguments = sys.argv[1:]
    if not arguments:
        print(USAGE)
        return 2
    if arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        for name in arguments:
            print(describe(Path(name)))
    except LetheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
