"""Outputs of an earlier run, kept until the jobs that make them again have succeeded."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path


class EarlierOutputs:
    """Second names of finished outputs.

    Snakemake removes the outputs of a job before the job starts, so that a job that fails leaves
    nothing. Hard links keep the content and its time, and cost no space. Where the file system has
    no hard links, the files are copied.

    Parameters
    ----------
    folder
        Folder of the second names, on the same file system as the outputs. What a killed run has
        left there is removed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._kept: dict[Path, Path] = {}

    def keep(self, outputs: Iterable[Path]) -> None:
        """Gives each of these files a second name."""
        if not self._kept:
            self.clear()
            self._folder.mkdir(parents=True)
        for output in outputs:
            kept = self._folder / str(len(self._kept))
            try:
                os.link(output, kept)
            except OSError:
                shutil.copy2(output, kept)
            self._kept[output] = kept

    def put_back(self, outputs: Sequence[Path]) -> bool:
        """Puts all outputs of a job back, unless all of them exist.

        Returns
        -------
        True if they were put back.
        """
        if all(output.exists() for output in outputs):
            return False
        for output in outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._kept[output], output)
        return True

    def clear(self) -> None:
        """Removes the second names."""
        self._kept = {}
        shutil.rmtree(self._folder, ignore_errors=True)
