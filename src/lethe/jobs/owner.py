"""The Snakemake process that a job belongs to, and the lock that such a process leaves when killed.

Every job knows its owner by the environment variable LETHE_OWNER and ends, as on SIGTERM, soon
after the owner is gone. A lock of Snakemake names its owner in a file beside it. On one machine, a
lock whose owner is gone is therefore removed without a question. This module needs Linux's /proc;
without it nothing is watched and no lock is removed.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lethe.errors import LetheError

VARIABLE = "LETHE_OWNER"
# `lethe run` sets this variable, so that Snakemake knows who runs it.
COMMAND = "LETHE_COMMAND"
# File systems of one machine. On any other, a process of another machine may hold a lock.
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "f2fs", "bcachefs"}
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_JOBS_TO_END = 300.0
_log = logging.getLogger("lethe.jobs")


@dataclass(frozen=True)
class Owner:
    """A process of one machine: numbers are reused, so its start time belongs to it.

    `start` is in clock ticks since the machine started. `boot` changes when the machine restarts,
    and `namespace` tells containers of one machine apart.
    """

    host: str
    machine: str
    boot: str
    namespace: str
    number: int
    start: str

    @classmethod
    def of_process(cls, number: int) -> "Owner":
        """The identity of a running process of this machine."""
        return cls(
            host=socket.gethostname(),
            machine=_content("/etc/machine-id"),
            boot=_content("/proc/sys/kernel/random/boot_id"),
            namespace=_namespace(),
            number=number,
            start=_start_time(number),
        )

    def is_gone(self) -> bool:
        """True only if the process ran on this machine and surely runs no more."""
        here = Owner.of_process(os.getpid())
        if self.host != here.host or self.machine != here.machine or not here.boot:
            return False
        if self.boot != here.boot:
            return bool(here.machine)
        return self.namespace == here.namespace and _start_time(self.number) != self.start

    def write(self, path: Path) -> None:
        """Writes a file that names this process."""
        path.write_text(json.dumps(asdict(self)), "utf-8")

    def variable(self) -> str:
        """The value of LETHE_OWNER in the jobs of this process."""
        return f"{self.number}:{self.start}"


def _content(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(number: int) -> str:
    """When a process started; empty if there is none, or only its exit status is left."""
    fields = _status(number)
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def parent(number: int) -> int:
    """Number of a process's parent; 0 if it has none, or if there is no such process."""
    fields = _status(number)
    return int(fields[1]) if fields else 0


def _status(number: int) -> list[str]:
    """Fields of /proc/NUMBER/stat from the third on: state, number of the parent, and so on."""
    # The name, in parentheses, may hold spaces.
    return _content(f"/proc/{number}/stat").rpartition(")")[2].split()


# ---- jobs end with their owner


def watch_owner() -> None:
    """Ends this process as SIGTERM does, when the Snakemake process that started it is gone."""
    _watch(os.environ.get(VARIABLE, ""), signal.SIGTERM)


def watch_command() -> None:
    """Ends this Snakemake process, as `kill -9` does, when the `lethe run` above it is gone.

    Its jobs end by themselves and save their state.
    """
    # Jobs, which may run on another machine, must not look for the command.
    _watch(os.environ.pop(COMMAND, ""), signal.SIGKILL)


def _watch(identity: str, kind: signal.Signals) -> None:
    number, _, start = identity.partition(":")
    if not number or not start or os.getpid() == int(number):
        return
    arguments = (int(number), start, kind)
    threading.Thread(target=_end_with, args=arguments, daemon=True, name="owner").start()


def _end_with(number: int, start: str, kind: signal.Signals) -> None:
    while _start_time(number) == start:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), kind)


def in_a_thread(handler: Callable[..., Any]) -> Callable[..., None]:
    """A signal handler that runs in a thread of its own.

    A handler interrupts the main thread. If it waited for a lock that the main thread holds, both
    would wait forever.
    """

    def start(*arguments: Any) -> None:
        threading.Thread(target=handler, args=arguments, daemon=True, name="signal").start()

    return start


def processes_of(owner: Owner) -> list[int]:
    """Numbers of the running jobs of a process."""
    entry = f"{VARIABLE}={owner.variable()}".encode()
    numbers = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended, or belongs to another user.
        if entry in environment and _start_time(int(folder.name)):
            numbers.append(int(folder.name))
    return sorted(numbers)


# ---- locks


def sign_locks(paths: Iterable[str | Path]) -> None:
    """Writes beside each lock which process, this one, holds it."""
    owner = Owner.of_process(os.getpid())
    for path in paths:
        owner.write(Path(f"{path}.owner"))


def remove_dead_locks(folder: Path) -> list[int]:
    """Removes the locks in a folder whose processes are gone, after the last of their jobs.

    Does nothing on a file system that other machines may share, and leaves locks that no process
    has signed.

    Returns
    -------
    The numbers of the processes.

    Raises
    ------
    LetheError
        If jobs of a process that is gone do not end.
    """
    if not folder.is_dir() or not is_local(folder):
        return []
    removed = []
    # Two runs that start together must not remove each other's new lock.
    with open(folder.parent / "locks.guard", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for signature in sorted(folder.glob("*.owner")):
            owner = read_owner(signature)
            if owner is None or not owner.is_gone():
                continue
            wait_for_jobs(owner)
            signature.with_suffix("").unlink(missing_ok=True)
            signature.unlink(missing_ok=True)
            removed.append(owner.number)
    return sorted(set(removed))


def read_owner(path: Path) -> Owner | None:
    """The owner that a file names; None if it names none."""
    try:
        return Owner(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def wait_for_jobs(owner: Owner) -> None:
    """Waits until the jobs of a process that is gone have ended.

    Raises
    ------
    LetheError
        If they do not end.
    """
    end = time.monotonic() + _SECONDS_FOR_JOBS_TO_END
    numbers = processes_of(owner)
    if numbers:
        _log.warning("waiting for the jobs of a run that was killed: processes %s", numbers)
    while numbers:
        if time.monotonic() > end:
            raise LetheError(
                f"a run in this folder was killed, and its jobs do not end: processes {numbers}; "
                "look at them (ps -fp NUMBER), wait for them or end them (jobs of a cluster with "
                "scancel), and run again"
            )
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        numbers = processes_of(owner)


def is_local(path: Path) -> bool:
    """Whether a path lies on a file system that no other machine can reach."""
    kind, longest = "", -1
    resolved = path.resolve()
    for line in _content("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")
        if len(point) >= longest and resolved.is_relative_to(point):
            kind = after.split()[0]
            longest = len(point)
    return kind in _LOCAL
