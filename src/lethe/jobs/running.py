"""What the workflow's jobs have in common: environment, log, errors."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from lethe.errors import LetheError


def export_library(folder: str) -> None:
    """Lets the processes of jobs, in conda environments as well, import from `folder`.

    Jobs that can start warm do so for as long as this process lives (`lethe.jobs.warm`); on Linux,
    as libraries of other systems do not survive a fork.
    """
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([folder, *others]))
    if sys.platform == "linux" and os.environ.get("LETHE_WARM") != "0":
        os.environ["LETHE_WARM"] = str(os.getpid())


def cache_folder() -> str:
    """Where fetched packages are kept: LETHE_CACHE, else ~/.cache/lethe."""
    return os.environ.get("LETHE_CACHE", str(Path.home() / ".cache" / "lethe"))


class _Both(io.TextIOBase):
    """A text stream that writes to the terminal and to the log, where that can be written."""

    def __init__(self, terminal: TextIO, log: BinaryIO):
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        # A disk that is full loses what is said, and not the job.
        with contextlib.suppress(OSError):
            self._log.write(text.encode("utf-8", "replace"))
        self._terminal.write(text)
        self._terminal.flush()
        return len(text)

    def flush(self) -> None:
        self._terminal.flush()


def run(function: Callable[..., None], log: str, **arguments: Any) -> None:
    """Calls `function`, with all that goes to stderr also in the log.

    A LetheError ends the job with its message alone: it says what to do, a traceback would
    bury it.
    """
    # Hubs answer slowly or not at all from compute nodes; tokenizers need no threads of their own.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: nothing is left to be written when it is closed.
    with open(log, "wb", buffering=0) as stream:
        terminal, sys.stderr = sys.stderr, _Both(sys.stderr, stream)
        try:
            function(**arguments)
        except LetheError as error:
            print(f"\nerror: {error}", file=sys.stderr)
            raise SystemExit(1)
        except Exception:
            # Into the log as well: on a cluster it is all that is left of a job.
            with contextlib.suppress(OSError):
                stream.write(traceback.format_exc().encode("utf-8", "replace"))
            raise
        finally:
            sys.stderr = terminal


def beside(output: Path) -> Path:
    """Where an unfinished job keeps what it has: hidden, beside the file that it will write."""
    return output.with_name(f".{output.stem}.unfinished")
