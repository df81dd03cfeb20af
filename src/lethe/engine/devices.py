"""Which GPUs a job may use, if no scheduler decides that."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

_log = logging.getLogger("lethe.engine")
# The operating system releases a lock when its process ends, however it ends.
_held: list[FileLock] = []


def claim(gpus: int) -> None:
    """Makes `gpus` of this machine's GPUs the only ones that this process sees.

    Snakemake counts the GPUs that its jobs use but does not choose them. Jobs that run side by side
    choose here, and wait while other jobs hold all GPUs. Under SLURM the scheduler has chosen. On a
    machine without GPUs nothing happens.
    """
    if "SLURM_JOB_ID" in os.environ:
        _report(gpus)
        return
    present = visible(os.environ, sorted(Path("/dev").glob("nvidia[0-9]*")))
    if gpus and not present:
        return
    locked = free(present, min(gpus, len(present)), Path(tempfile.gettempdir()))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(locked)
    _report(gpus)


def _report(gpus: int) -> None:
    if gpus:
        _log.info("GPU of this job: %s", os.environ.get("CUDA_VISIBLE_DEVICES", "none"))


def visible(environment: Mapping[str, str], nodes: Sequence[Path]) -> list[str]:
    """GPUs that CUDA_VISIBLE_DEVICES names, else those that have a device node."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [node.name.removeprefix("nvidia") for node in nodes]
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
