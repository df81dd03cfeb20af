"""Runs a job's function in this process, with its log and its errors."""

import contextlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lethe.errors import LetheError


class _TerminalAndLog(io.TextIOBase):
    """A text stream that writes to the terminal and to the log."""

    def __init__(self, terminal: TextIO, log: BinaryIO):
        self._terminal = terminal
        self._log = log

    def write(self, text: str) -> int:
        # On a full disk the job loses messages, not its work.
        with contextlib.suppress(OSError):
            self._log.write(text.encode("utf-8", "replace"))
        self._terminal.write(text)
        self._terminal.flush()
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()


@contextlib.contextmanager
def _messages_to(stream: TextIO) -> Iterator[None]:
    """Sends stderr, and the library's own log messages, to the stream."""
    logger = logging.getLogger("lethe")
    handler = logging.StreamHandler(stream)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stderr(stream):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextlib.contextmanager
def _no_input() -> Iterator[None]:
    """Gives the block an empty standard input, so that no library can ask a question there."""
    try:
        original = os.dup(0)
    except OSError:
        # The process has no standard input.
        yield
        return
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    try:
        yield
    finally:
        os.dup2(original, 0)
        os.close(original)


def run_in_process(function: Callable[..., None], log: str, **arguments: Any) -> None:
    """Calls `function(**arguments)`; everything on stderr also goes to the log.

    Standard input is empty, so that no question of a library is answered by chance. A LetheError
    ends the job with its message alone. The message names the next step, and a traceback would
    hide it.

    Raises
    ------
    SystemExit
        With status 1, after a LetheError, or 130, after Ctrl-C.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, so that closing the log has nothing left to write.
    with (
        open(log, "wb", buffering=0) as stream,
        _messages_to(_TerminalAndLog(sys.stderr, stream)),
        _no_input(),
    ):
        try:
            function(**arguments)
        except LetheError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            raise SystemExit(1)
        except KeyboardInterrupt:
            print("\nstopped by Ctrl-C", file=sys.stderr)
            raise SystemExit(128 + signal.SIGINT)
        except Exception:
            # On a cluster the log is all that remains of a job.
            with contextlib.suppress(OSError):
                stream.write(traceback.format_exc().encode("utf-8", "replace"))
            raise


def add_to_log(log: str, text: str) -> None:
    """Adds text at the end of a job's log. On a full disk only the terminal has it."""
    with contextlib.suppress(OSError):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(text)


def killed_by(number: int) -> str:
    """Says which signal killed a job, and what to do if it was probably the lack of memory."""
    name = signal.Signals(number).name
    if number != signal.SIGKILL:
        return f"was killed by {name}"
    # The kernel ends a process with SIGKILL if the memory runs out.
    return (
        f"was killed by {name}, probably because memory ran out; run fewer jobs at once, or make "
        "batches smaller (recipe.micro_batch, scoring.tokens_per_batch)"
    )


def exit_status(function: Callable[..., None], log: str, **arguments: Any) -> int:
    """Calls `run_in_process` and returns the status to leave with: 0, or that of its SystemExit.

    A caller that leaves by `os._exit` skips the end of the interpreter, which writes what is still
    buffered. It is written here.
    """
    try:
        run_in_process(function, log, **arguments)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
