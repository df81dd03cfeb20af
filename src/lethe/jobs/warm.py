"""Jobs that start warm, as forks of a process that has already imported torch and transformers.

A job on a small model computes for a few seconds and imports for as many. The first job of a run
starts a server that imports once. That job and all later ones are forks of it, each with the
caller's environment, folder and terminal. The server ends with the process whose number LETHE_WARM
holds: Snakemake, or a process above it that starts several runs. If that is 0 or not set, or if
anything goes wrong, a job runs in its own process and computes the same.

A fork and its job share a connection: the fork takes the job's signals from it, ends when the job
has ended, and reports its own exit status. The server is not needed for any of this, so a fork
whose server dies still finishes, and its result counts.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lethe.jobs import calls, process
from lethe.jobs.owner import parent

# Modules that jobs on models import; a job imports the class of its model itself.
LIBRARIES = (
    "pandas",  # arrow imports it to write a row
    "torch._dynamo",  # the optimizer imports it
    "transformers.modeling_layers",  # every model imports it
)
PRELOADED = ("lethe.measure.forgetting", "lethe.similarity.directions", *LIBRARIES)
_STARTED, _SECONDS_TO_LISTEN = b"s", 10.0


def server_owner() -> int:
    """Number of the process with which the server of this Snakemake process ends.

    It is the process that LETHE_WARM names if that is above this one, and this one otherwise.
    """
    number = os.getpid()
    while number:
        number = parent(number)
        if os.environ.get("LETHE_WARM") == str(number):
            return number
    return os.getpid()


def run_in_fork(function: Callable[..., None], log: str, **arguments: Any) -> bool:
    """Calls `function(**arguments)` in a fork of the warm server.

    Parameters
    ----------
    function
        A function of a script that can be imported.
    arguments
        Values that `lethe.jobs.calls.to_json` can hand over: JSON values, paths, settings, and
        Snakemake's lists of files.

    Returns
    -------
    False if there is no server or the fork did not begin: the job has to run elsewhere.

    Raises
    ------
    SystemExit
        If the job failed in the fork.
    """
    owner = os.environ.get("LETHE_WARM", "0")
    connection = None if owner == "0" else _connect(owner)
    if connection is None:
        return False
    request = calls.to_json(function, arguments)
    request |= {"log": log, "folder": os.getcwd(), "environment": dict(os.environ)}
    with connection:
        started, code = _hand_over(connection, json.dumps(request).encode())
    if not started:
        return False
    if code < 0:
        reason = f"error: the job {process.killed_by(-code)}"
        process.add_to_log(log, f"{reason}\n")
        raise SystemExit(reason)
    if code:
        raise SystemExit(code)
    return True


# ---- the job's side


def _connect(owner: str) -> socket.socket | None:
    """Connects to the server of this run, and starts it first if necessary."""
    try:
        folder = _folder(owner)
        with open(folder / "lock", "w") as lock:
            # If several jobs start together, one of them starts the server.
            fcntl.flock(lock, fcntl.LOCK_EX)
            connection = _try_to_connect(folder)
            if connection is None:
                _start(folder, owner)
                connection = _wait(folder)
        return connection
    except OSError:
        return None


def _folder(owner: str) -> Path:
    """The server's folder for this user, run and Python; only this user may open it."""
    identity = f"{os.getuid()} {owner} {sys.executable} {os.environ.get('PYTHONPATH')}"
    name = f"lethe-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is open to other users")
    return folder


def _try_to_connect(folder: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(folder / "socket"))
    except OSError:
        connection.close()
        return None
    return connection


def _start(folder: Path, owner: str) -> None:
    with open(folder / "server.log", "wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "lethe.jobs.warm", str(folder), owner, *PRELOADED],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C reaches the jobs, which pass it on to their forks.
            start_new_session=True,
        )


def _wait(folder: Path) -> socket.socket | None:
    end = time.monotonic() + _SECONDS_TO_LISTEN
    while time.monotonic() < end:
        if (connection := _try_to_connect(folder)) is not None:
            return connection
        time.sleep(0.05)
    return None


def _hand_over(connection: socket.socket, request: bytes) -> tuple[bool, int]:
    """Sends the request and waits; signals that arrive meanwhile go to the fork.

    Returns
    -------
    True if the fork began, and its exit status (negative: the signal that ended it).
    """

    def forward(number: int, _frame: Any) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(bytes([number]))

    try:
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], [1, 2])
        connection.sendall(request)
        if connection.recv(1) != _STARTED:
            return False, 0
    except OSError:
        return False, 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    try:
        status = connection.recv(8)
    except OSError:
        status = b""
    # The outcome is known, and a signal that comes late must not hide it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    # Without a status the fork was killed after its server, at an unknown point of its work.
    return True, int.from_bytes(status, "big", signed=True) if status else -signal.SIGKILL


# ---- the server's side


def serve(folder: Path, owner: int, modules: Sequence[str]) -> None:
    """Imports the modules, then forks for every connection until the process `owner` is gone."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    forks: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        # A cluster signals all processes of a job to stop, but the fork still saves its work.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        listener.bind(str(path))
        listener.listen(128)
        for module in modules:
            importlib.import_module(module)
        try:
            while forks or _alive(owner):
                _wait_for_event(listener, forks)
                _kill_abandoned(forks)
                _reap(forks)
                if _is_ready(listener, select.POLLIN):
                    _begin(listener, forks)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _wait_for_event(listener: socket.socket, forks: dict[int, socket.socket]) -> None:
    """Waits, a tenth of a second at most, for a new job or the end of one.

    The server must not read from the connections, because the forks do.
    """
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    for connection in forks.values():
        poll.register(connection, select.POLLRDHUP)
    poll.poll(100)


def _is_ready(connection: socket.socket, event: int) -> bool:
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(0))


def _kill_abandoned(forks: dict[int, socket.socket]) -> None:
    """Kills the forks whose job has ended."""
    for fork, connection in forks.items():
        if _is_ready(connection, select.POLLRDHUP):
            os.kill(fork, signal.SIGKILL)


def _begin(listener: socket.socket, forks: dict[int, socket.socket]) -> None:
    connection, _ = listener.accept()
    try:
        connection.settimeout(_SECONDS_TO_LISTEN)
        request, descriptors = _receive(connection)
        connection.settimeout(None)
    except OSError:
        connection.close()
        return
    fork = os.fork()
    if fork == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            # An open copy of its connection would hide from another job that this fork ended.
            for other in (listener, *forks.values()):
                other.close()
            connection.sendall(_STARTED)
            threading.Thread(target=_obey, args=(connection,), daemon=True).start()
            code = _work(request, descriptors)
        finally:
            _report(connection, code)
            # No exit handler of the server may run in a fork; tearing down torch takes a second.
            os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    forks[fork] = connection


def _obey(connection: socket.socket) -> None:
    """Sends the signals of its job to this fork, and kills the fork if the job has ended."""
    while True:
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(os.getpid(), number)


def _report(connection: socket.socket, code: int) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(code.to_bytes(8, "big", signed=True))


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    size, descriptors, *_ = socket.recv_fds(connection, 8, 2)
    request = bytearray()
    while len(request) < int.from_bytes(size, "big"):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError("the job ended before it had sent its request")
        request += part
    return bytes(request), descriptors


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _reap(forks: dict[int, socket.socket]) -> None:
    for fork, connection in list(forks.items()):
        ended, status = os.waitpid(fork, os.WNOHANG)
        if ended:
            # Only a fork that was killed has not reported its status itself.
            with connection:
                _report(connection, os.waitstatus_to_exitcode(status))
            del forks[fork]


def _work(request: bytes, descriptors: list[int]) -> int:
    """Makes the requested call in the fork; returns the exit status."""
    surroundings = json.loads(request)
    for descriptor, stream in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(surroundings["environment"])
    os.chdir(surroundings["folder"])
    try:
        call = calls.from_json(request)
        return process.exit_status(call["function"], call["log"], **call["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
        return 1


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
