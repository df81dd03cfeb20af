"""Outputs of an earlier run, kept until the jobs that make them again have succeeded."""

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from lethe.jobs.owner import Owner, read_owner

# File in a process's folder that names the process.
OWNER = "owner.json"


class EarlierOutputs:
    """Second names of finished outputs.

    Snakemake removes the outputs of a job before the job starts, so that a job that fails leaves
    nothing. Hard links keep the content and its time, and cost no space. Where the file system has
    no hard links, the files are copied.

    Snakemake lets two runs of one experiment go on at the same time if they make other files, so
    each process has a folder of its own.

    Parameters
    ----------
    folder
        Folder of all processes' folders, on the same file system as the outputs. Those of
        processes that were killed are removed.
    """

    def __init__(self, folder: Path):
        self._all = folder
        # This process's folder, once there is something to keep.
        self._folder: Path | None = None
        self._kept: dict[Path, Path] = {}

    def keep(self, outputs: Iterable[Path]) -> None:
        """Gives each of these files a second name."""
        if self._folder is None:
            self._clear_dead()
            owner = Owner.of_process(os.getpid())
            self._folder = self._all / owner.variable().replace(":", "-")
            self._folder.mkdir(parents=True)
            owner.write(self._folder / OWNER)
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
        if self._folder is None:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._kept = {}
        # It stays if another process has a folder there.
        with suppress(OSError):
            self._all.rmdir()

    def _clear_dead(self) -> None:
        """Removes the folders of processes that are gone."""
        for signature in self._all.glob(f"*/{OWNER}"):
            owner = read_owner(signature)
            if owner is not None and owner.is_gone():
                shutil.rmtree(signature.parent, ignore_errors=True)
        # Until November 2026, the outputs themselves lay here.
        for left in self._all.glob("[0-9]*"):
            if left.is_file():
                left.unlink()
