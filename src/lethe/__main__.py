"""`lethe FILE ...` prints what made a file."""

import json
import sys
from pathlib import Path

import numpy as np

from lethe.errors import LetheError
from lethe.matrix import rows


def told(path: Path) -> str:
    """What a row, base losses, a replay run, or a Z with its rows beside it, was made with.

    Raises
    ------
    LetheError
        If the file is none of these, or was changed after it was written.
    """
    if path.name == "Z.parquet":
        return "\n\n".join(told(row) for row in rows_of(path))
    row = rows.read(path)
    found = {"settings": row.settings, "about": row.about}
    known = int(np.isfinite(row.forgetting).sum())
    mean = float(np.nanmean(row.forgetting)) if known else float("nan")
    line = f"{path}: {len(row.example_ids)} examples, mean forgetting {mean:.4f} nats"
    if row.answers is not None:
        lost = int(np.nansum(row.forgetting))
        line = f"{path}: {len(row.example_ids)} examples, {lost} of {known} right answers lost"
    return f"{line}, content as it was written\n{json.dumps(found, indent=1, sort_keys=True)}"


def rows_of(path: Path) -> list[Path]:
    """The row files that a Z was gathered from.

    Raises
    ------
    LetheError
        If there is none beside it.
    """
    if not (found := sorted((path.parent / "rows").glob("*.parquet"))):
        raise LetheError(f"{path}: there are no rows beside it, in {path.parent / 'rows'}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints what made each file, by default those of the command line; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: lethe FILE ...")
        print("Prints what made a row, base losses, a replay run or a Z.")
        return 0 if arguments else 2
    try:
        for name in arguments:
            print(told(Path(name)))
    except LetheError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
