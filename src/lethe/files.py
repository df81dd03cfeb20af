"""Atomic writing of files, JSON, and hashes of files."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lethe.errors import LetheError


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` only if the block raises nothing.

    The content is on the disk before it replaces the old file, so that after a power cut either
    the old or the new file exists, never a part of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Asks the system to put a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems cannot sync folders; their files are still replaced at once.
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, default=str)
    with atomic_write(path) as part:
        part.write_text(text + "\n", "utf-8")


def read_json(path: Path | str) -> Any:
    """Reads JSON, with or without a byte order mark.

    Raises
    ------
    LetheError
        Naming the file, if it does not exist or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise LetheError(
            f"{path}: not readable as JSON ({error}); if lethe made the file, move it away and "
            "run again"
        )


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
