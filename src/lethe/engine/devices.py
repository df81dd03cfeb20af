"""Which GPUs a job may use, if no scheduler decides that."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from lethe.errors import LetheError

_log = logging.getLogger("lethe.engine")
# The operating system releases a lock when its process ends, however it ends.
_held: list[FileLock] = []


def claim(gpus: int) -> None:
    """Makes `gpus` of this machine's GPUs the only ones that this process sees.

    Snakemake counts the GPUs that its jobs use but does not choose them. Jobs that run side by side
    choose here, and wait while other jobs hold all GPUs. Under SLURM the scheduler has chosen; jobs
    that share one allocation choose among its GPUs. On a machine without GPUs nothing happens.

    Raises
    ------
    LetheError
        If the folder of the locks of an allocation belongs to another user.
    """
    if allocation := os.environ.get("SLURM_JOB_ID"):
        present = visible(os.environ, [])
        # A job that needs all of them, or none, shares nothing.
        if 0 < gpus < len(present):
            _take(present, gpus, _folder_of(allocation))
    else:
        present = visible(os.environ, nodes())
        if gpus and not present:
            return
        _take(present, min(gpus, len(present)), Path(tempfile.gettempdir()))
    if gpus:
        _log.info("GPU of this job: %s", os.environ.get("CUDA_VISIBLE_DEVICES", "none"))


def _take(devices: Sequence[str], count: int, folder: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(free(devices, count, folder))


def _folder_of(allocation: str) -> Path:
    """Folder of the locks of an allocation, which no other user may write to.

    Allocations number their GPUs from 0 where SLURM hides the others, so each has its own locks.
    """
    folder = Path(tempfile.gettempdir(), f"lethe-{os.getuid()}-slurm-{allocation}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Everyone may write to the folder of temporary files. A link there leads elsewhere.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise LetheError(
            f"{folder}: belongs to another user or is a link, so it cannot hold the locks of this "
            "job's GPUs; set TMPDIR to a folder of your own"
        )
    return folder


def nodes() -> list[Path]:
    """Device nodes of this machine's GPUs."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def visible(environment: Mapping[str, str], nodes: Sequence[Path]) -> list[str]:
    """GPUs that CUDA_VISIBLE_DEVICES names, else as many as there are device nodes."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        # CUDA counts the GPUs that it sees from 0. The number of a node is the host's: a container
        # may have /dev/nvidia3 only.
        return [str(number) for number in range(len(nodes))]
    return [name.strip() for name in named.split(",") if name.strip()]


def free(devices: Sequence[str], count: int, folder: Path, pause: float = 1.0) -> list[str]:
    """Locks `count` of the devices that no other process has locked.

    Waits until so many are free.

    Parameters
    ----------
    folder
        Folder of the lock files, shared by the jobs of this machine.
    pause
        Seconds between two attempts.
    """
    while True:
        locks = {}
        for device in devices:
            lock = FileLock(folder / f"lethe-gpu-{device}.lock", blocking=False, mode=0o666)
            try:
                lock.acquire()
            except Timeout:
                continue
            locks[device] = lock
        selected = list(locks)[:count] if len(locks) >= count else []
        for device, lock in locks.items():
            if device in selected:
                _held.append(lock)
            else:
                lock.release()
        if len(selected) == count:
            return selected
        time.sleep(pause)
