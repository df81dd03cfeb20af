"""Files that are written whole or not at all, and fetched packages that are what they should be."""

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
    """Gives a path to write to that takes the place of `path` only if nothing went wrong."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n", "utf-8")


def read_json(path: Path | str) -> Any:
    """Reads JSON; raises LetheError naming a file that is none."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LetheError(f"{path}: not readable as JSON ({error}); delete it and run again")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
