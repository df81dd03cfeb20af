"""Calls a function in a process of its own, a fork of one that has imported torch."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lethe.jobs.warm import LIBRARIES


def call(
    function: Callable[..., None],
    *arguments: Any,
    folder: Path,
    environment: dict[str, str] | None = None,
    status: int = 0,
) -> tuple[str, str]:
    """Calls the function; what the process wrote on stdout and stderr, by way of two files.

    Fails if the process ends with another status, or not within four minutes.
    """
    multiprocessing.set_forkserver_preload(list(LIBRARIES))
    context = multiprocessing.get_context("forkserver")
    files = [folder / "stdout", folder / "stderr"]
    process = context.Process(
        target=_call, args=(function, arguments, files, os.environ | (environment or {}))
    )
    process.start()
    process.join(240)
    if process.exitcode is None:
        process.kill()
    output, messages = (file.read_text("utf-8") if file.exists() else "" for file in files)
    assert process.exitcode == status, f"status {process.exitcode}: {messages}"
    return output, messages


def _call(
    function: Callable[..., None],
    arguments: tuple,
    files: list[Path],
    environment: dict[str, str],
) -> None:
    for number, file in enumerate(files, start=1):
        with file.open("wb") as stream:
            os.dup2(stream.fileno(), number)
    os.environ.clear()
    os.environ |= environment
    function(*arguments)
