"""A row in a few words: how many examples, how much was forgotten, and what it was made with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lethe.errors import LetheError
from lethe.matrix import rows


@dataclass(frozen=True)
class RowDescription:
    """Facts of one row file.

    Attributes
    ----------
    examples
        Count of upstream examples.
    measured
        Count of examples with a forgetting that is not NaN.
    mean_forgetting
        Mean over these, in nats per scored token; for exact match the share of right answers that
        were lost.
    lost_answers
        Count of right answers that were lost; None if losses were measured.
    """

    path: Path
    examples: int
    measured: int
    mean_forgetting: float
    lost_answers: int | None
    settings: dict[str, Any]
    about: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "RowDescription":
        """Reads a row, base losses or a replay run.

        Raises
        ------
        LetheError
            If the file is none of these, or was changed after it was written.
        """
        row = rows.read_row(path)
        finite = row.forgetting[np.isfinite(row.forgetting)]
        return cls(
            path=path,
            examples=len(row.example_ids),
            measured=len(finite),
            mean_forgetting=float(finite.mean()) if len(finite) else float("nan"),
            lost_answers=None if row.answers is None else int(finite.sum()),
            settings=row.settings,
            about=row.about,
        )

    def headline(self) -> str:
        """One sentence on the file."""
        if self.lost_answers is not None:
            summary = f"{self.lost_answers} of {self.measured} right answers lost"
        else:
            summary = f"mean forgetting {self.mean_forgetting:.4f} nats"
        return f"{self.path}: {self.examples} examples, {summary}, content as it was written"

    def content(self) -> dict[str, Any]:
        """The settings and facts that the file holds."""
        return {"settings": self.settings, "about": self.about}

    def as_dict(self) -> dict[str, Any]:
        """All facts as JSON values."""
        return {
            "file": str(self.path),
            "examples": self.examples,
            "measured": self.measured,
            "mean_forgetting": self.mean_forgetting,
            "lost_answers": self.lost_answers,
            **self.content(),
        }


def describe_file(path: Path) -> list[RowDescription]:
    """The row in a file, or all rows beside a Z.

    Raises
    ------
    LetheError
        If the file is no row, was changed after it was written, or is a Z without rows.
    """
    if path.name != "Z.parquet":
        return [RowDescription.of(path)]
    return [RowDescription.of(row) for row in row_files(path)]


def row_files(matrix: Path) -> list[Path]:
    """The row files that a Z was gathered from.

    Raises
    ------
    LetheError
        If there are none beside it.
    """
    folder = matrix.parent / "rows"
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise LetheError(f"{matrix}: there are no rows beside it, in {folder}")
    return files
