"""Which GPU a job may use, where no scheduler says so."""

import fcntl
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Locks are the operating system's: held until the process ends, however it ends.
_held: list[int] = []


def claim(gpus: int) -> None:
    """Makes `gpus` of this machine's GPUs the only ones that this process sees.

    Snakemake counts how many GPUs its jobs use but not which; jobs that run side by side settle
    that here, and wait if others hold them all. Under SLURM the scheduler has settled it. On a
    machine without GPUs nothing happens.
    """
    if "SLURM_JOB_ID" in os.environ:
        _say(gpus)
        return
    present = visible(os.environ, sorted(Path("/dev").glob("nvidia[0-9]*")))
    if gpus and not present:
        return
    chosen = free(present, min(gpus, len(present)), Path(tempfile.gettempdir()))
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    _say(gpus)


def _say(gpus: int) -> None:
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        print(f"GPU of this job: {seen}", file=sys.stderr)


def visible(environment: Mapping[str, str], nodes: Sequence[Path]) -> list[str]:
    """GPUs that CUDA_VISIBLE_DEVICES names, else those that have a device node."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [node.name.removeprefix("nvidia") for node in nodes]
    return [name.strip() for name in named.split(",") if name.strip()]


def free(devices: Sequence[str], count: int, folder: Path, pause: float = 1.0) -> list[str]:
    """Locks `count` of the devices that no other process has locked; waits until there are."""
    while True:
        locks = {device: _lock(folder / f"lethe-gpu-{device}.lock") for device in devices}
        ours = [device for device, lock in locks.items() if lock is not None]
        kept = ours[:count] if len(ours) >= count else []
        for device in ours:
            if device in kept:
                _held.append(locks[device])
            else:
                os.close(locks[device])
        if len(kept) == count:
            return kept
        time.sleep(pause)


def _lock(path: Path) -> int | None:
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
