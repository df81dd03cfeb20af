"""Outputs of an earlier run, kept until the jobs that make them again have succeeded."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lethe.files import write_text
from lethe.jobs.owner import Owner, read_owner, wait_for_jobs

# Files in a process's folder: who the process is, and for which jobs it keeps which outputs.
OWNER = "owner.json"
JOBS = "jobs.json"


@dataclass(frozen=True)
class EarlierJob:
    """A finished job that runs again.

    Attributes
    ----------
    records
        Output -> Snakemake's record of how it was made, None if there is none.
    kept
        Output -> its second name.
    """

    records: Mapping[str, dict[str, Any] | None]
    kept: Mapping[str, Path]

    def has_outputs(self) -> bool:
        """Whether all of its outputs exist, the earlier or new ones."""
        return all(Path(output).exists() for output in self.records)

    def described(self) -> dict[str, list[Any]]:
        """Output -> the name of its kept file, and its record, as JSON values."""
        return {output: [path.name, self.records[output]] for output, path in self.kept.items()}

    def put_back(self) -> None:
        """Puts the earlier outputs back, with their times. The second names stay."""
        for output, kept in self.kept.items():
            path = Path(output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            _link(kept, path)


class EarlierOutputs:
    """Second names of finished outputs.

    Snakemake removes the outputs of a job before the job starts, so that a job that fails leaves
    nothing. Hard links keep the content and its time, and cost no space. Where the file system has
    no hard links, the files are copied.

    Snakemake lets two runs of one experiment go on at the same time if they make other files, so
    each process has a folder of its own. It says for which jobs it keeps what, because a process
    that is killed cannot put anything back: the next run does (`killed_runs`).

    Parameters
    ----------
    folder
        Folder of all processes' folders, on the same file system as the outputs.
    """

    def __init__(self, folder: Path):
        self._all = folder
        # This process's folder, once there is something to keep.
        self._folder: Path | None = None

    def keep(self, jobs: Sequence[Mapping[str, dict[str, Any] | None]]) -> list[EarlierJob]:
        """Gives each output of all jobs that run again a second name, before the first one starts.

        Parameters
        ----------
        jobs
            Output -> Snakemake's record of it, which can be written as JSON, for each job.
        """
        if not jobs:
            return []
        owner = Owner.of_process(os.getpid())
        self._folder = self._all / owner.variable().replace(":", "-")
        self._folder.mkdir(parents=True)
        owner.write(self._folder / OWNER)
        numbers = count()
        earlier = []
        for records in jobs:
            kept = {output: self._folder / str(next(numbers)) for output in records}
            for output, path in kept.items():
                _link(output, path)
            earlier.append(EarlierJob(records, kept))
        # On the disk before the first job removes anything.
        write_text(self._folder / JOBS, json.dumps([job.described() for job in earlier]))
        return earlier

    def clear(self) -> None:
        """Removes the second names."""
        if self._folder is None:
            return
        _remove(self._folder)
        self._folder = None

    def killed_runs(self) -> Iterator[tuple[Owner, list[EarlierJob]]]:
        """The processes that are gone, each with its jobs.

        Waits for the jobs that still run. When the next process is asked for, the second names
        of the last one are removed.

        Raises
        ------
        LetheError
            If jobs of a process that is gone do not end.
        """
        for signature in sorted(self._all.glob(f"*/{OWNER}")):
            owner = read_owner(signature)
            if owner is None or not owner.is_gone():
                continue
            # Somebody who may only read the results can still look at the plan.
            if not os.access(signature.parent, os.W_OK):
                continue
            with _locked(signature):
                # Another run that started at the same time may have done it.
                if not signature.exists():
                    continue
                wait_for_jobs(owner)
                yield owner, _read_jobs(signature.parent)
                _remove(signature.parent)
        # Until November 2026, the outputs themselves lay here.
        for left in self._all.glob("[0-9]*"):
            if left.is_file():
                left.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        file = path.open("r")
    except FileNotFoundError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_jobs(folder: Path) -> list[EarlierJob]:
    """The jobs of a process whose second names are all there."""
    try:
        described = json.loads((folder / JOBS).read_text("utf-8"))
    except FileNotFoundError:
        # It was killed before it had started a job, or is of an earlier version.
        return []
    jobs = []
    for entries in described:
        kept = {output: folder / name for output, (name, _) in entries.items()}
        # It may have been killed while it removed them, at its end.
        if all(path.exists() for path in kept.values()):
            jobs.append(EarlierJob({output: entry[1] for output, entry in entries.items()}, kept))
    return jobs


def _link(path: str | Path, name: Path) -> None:
    """Gives a file a second name, or a copy where there are no hard links."""
    try:
        os.link(path, name)
    except OSError:
        shutil.copy2(path, name)


def _remove(folder: Path) -> None:
    # The owner goes last: without it, no later run would remove the rest.
    for path in folder.iterdir():
        if path.name != OWNER:
            path.unlink()
    shutil.rmtree(folder)
    # The folder of all processes stays if another one has a folder there.
    with suppress(OSError):
        folder.parent.rmdir()
