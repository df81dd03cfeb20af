"""Jobs that start warm: forked from a process that has imported torch and transformers already.

A job on a small model computes for a few seconds and imports for as many. The first job of a run
starts a server that imports once; that job and all later ones are forks of it, each with the
caller's environment, folder and terminal. The server ends with the Snakemake process whose number
LETHE_WARM holds. Where that is 0 or not set, or anything stands in the way, a job runs in its own
process, and computes the same.
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
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lethe.jobs import calls, launch, running

# What jobs on models import; the model's own class comes with its first job.
PRELOADED = (
    "lethe.measure.forgetting",
    "lethe.similarity.directions",
    "pandas",  # arrow's, when it writes a row
    "torch._dynamo",  # the optimizer's
    "transformers.modeling_layers",  # every model's
)
_STARTED, _SECONDS_TO_LISTEN = b"s", 10.0


def run(function: Callable[..., None], log: str, **arguments: Any) -> None:
    """As `lethe.jobs.running`, in a fork of the warm server where there can be one.

    A job whose recipe asks for several processes has them (`lethe.jobs.launch`). `function` stands
    in a script that can be imported; `arguments` are JSON values and paths.
    """
    if (processes := (arguments.get("recipe") or {}).get("processes", 1)) > 1:
        return launch.run(function, log, processes, **arguments)
    owner = os.environ.get("LETHE_WARM", "0")
    connection = None if owner == "0" else _connect(owner)
    if connection is None:
        return running.run(function, log, **arguments)
    request = calls.to_json(function, arguments)
    request |= {"log": log, "folder": os.getcwd(), "environment": dict(os.environ)}
    with connection:
        started, code = _hand_over(connection, json.dumps(request).encode())
    if not started:
        return running.run(function, log, **arguments)
    if code < 0:
        raise SystemExit(f"error: the job was killed by {signal.Signals(-code).name}")
    if code:
        raise SystemExit(code)


# ---- the job's side


def _connect(owner: str) -> socket.socket | None:
    """A connection to the server of this run, which is started if there is none."""
    try:
        folder = _folder(owner)
        with open(folder / "lock", "w") as lock:
            # Of jobs that start together, one starts the server.
            fcntl.flock(lock, fcntl.LOCK_EX)
            connection = _try(folder)
            if connection is None:
                _start(folder, owner)
                connection = _wait(folder)
        return connection
    except OSError:
        return None


def _folder(owner: str) -> Path:
    """The server's folder, of this user, run and Python; nobody else may look into it."""
    of = f"{os.getuid()} {owner} {sys.executable} {os.environ.get('PYTHONPATH')}"
    name = f"lethe-{hashlib.sha256(of.encode()).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


def _try(folder: Path) -> socket.socket | None:
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
            # Ctrl-C is for the jobs; what they do then they tell the server.
            start_new_session=True,
        )


def _wait(folder: Path) -> socket.socket | None:
    end = time.monotonic() + _SECONDS_TO_LISTEN
    while time.monotonic() < end:
        if (connection := _try(folder)) is not None:
            return connection
        time.sleep(0.05)
    return None


def _hand_over(connection: socket.socket, request: bytes) -> tuple[bool, int]:
    """Sends the request and waits; signals that come meanwhile go to the fork.

    Returns
    -------
    Whether the fork began, and its exit status (negative: the signal that ended it).
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
    # Without a status the server itself is gone, and then the fork: what it did nobody can tell.
    return True, int.from_bytes(status, "big", signed=True) if status else -signal.SIGKILL


# ---- the server's side


def serve(folder: Path, owner: int, modules: Sequence[str]) -> None:
    """Imports the modules, then forks for every connection until the process `owner` is gone."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        # A cluster that stops a job signals all of its processes: the fork has its work to save.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        listener.bind(str(path))
        listener.listen(128)
        for module in modules:
            importlib.import_module(module)
        try:
            while running or _alive(owner):
                ready, *_ = select.select([listener, *running.values()], [], [], 0.1)
                for process, connection in list(running.items()):
                    if connection in ready:
                        _obey(process, connection)
                _reap(running)
                if listener in ready:
                    _begin(listener, running)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _begin(listener: socket.socket, running: dict[int, socket.socket]) -> None:
    connection, _ = listener.accept()
    try:
        connection.settimeout(_SECONDS_TO_LISTEN)
        request, descriptors = _receive(connection)
        connection.settimeout(None)
    except OSError:
        connection.close()
        return
    process = os.fork()
    if process == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = 1
        try:
            # An open copy of another job's connection would hide from that job that we ended.
            for other in (listener, *running.values()):
                other.close()
            code = _work(request, descriptors)
        finally:
            # Nothing of the server's may run at exit, and tearing down torch takes a second.
            os._exit(code)
    for descriptor in descriptors:
        os.close(descriptor)
    running[process] = connection
    with contextlib.suppress(OSError):
        connection.sendall(_STARTED)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    size, descriptors, *_ = socket.recv_fds(connection, 8, 2)
    request = bytearray()
    while len(request) < int.from_bytes(size, "big"):
        part = connection.recv(1 << 16)
        if not part:
            raise ConnectionError("the job left before it had said what it wants")
        request += part
    return bytes(request), descriptors


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _obey(process: int, connection: socket.socket) -> None:
    """Passes on the signals that the job was sent; a job that is gone takes its fork with it."""
    with contextlib.suppress(OSError):
        for number in connection.recv(64) or [signal.SIGKILL]:
            os.kill(process, number)


def _reap(running: dict[int, socket.socket]) -> None:
    for process, connection in list(running.items()):
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            with connection, contextlib.suppress(OSError):
                connection.sendall(code.to_bytes(8, "big", signed=True))
            del running[process]


def _work(request: bytes, descriptors: list[int]) -> int:
    """Does in the fork what was asked for; returns the exit status."""
    asked = json.loads(request)
    for descriptor, stream in zip(descriptors, (1, 2), strict=True):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    try:
        call = calls.from_json(request)
        running.run(call["function"], call["log"], **call["arguments"])
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
