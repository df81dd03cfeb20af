"""Atomic writing of files, JSON, hashes of files, and the folder of the cache."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lethe.errors import LetheError

# Bytes. Smaller files are hashed each time: 16 MB take a hundredth of a second.
LARGE_FILE = 1 << 24


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


def matching_paths(folder: Path | str, pattern: str) -> list[Path]:
    """The files that match a pattern under a folder, in order; folders that match are left out."""
    return sorted(path for path in Path(folder).glob(pattern) if path.is_file())


def refuse_unwritable(path: Path | str) -> None:
    """Makes sure that `atomic_write` can write a file, whose folder is made if it is missing.

    Raises
    ------
    LetheError
        With the path and the reason, if it cannot.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        part.unlink()
    except OSError as error:
        raise LetheError(
            f"{path}: cannot be written ({error.strerror}: {error.filename}); choose another name "
            "or folder, or make room or permissions for it"
        )


def sync_folder(folder: Path | str) -> None:
    """Puts the files of a folder, and their names, on the disk.

    For libraries that write a folder themselves: call this before another file says that the folder
    is complete.
    """
    for path in sorted(Path(folder).rglob("*")):
        _sync(path)
    _sync(Path(folder))


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


def write_text(path: Path | str, text: str) -> None:
    """Writes text in UTF-8, atomically, with the line breaks that it has."""
    with atomic_write(path) as part:
        part.write_text(text, "utf-8", newline="\n")


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")


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


def cache_folder() -> str:
    """Returns the folder of fetched packages: LETHE_CACHE, or else ~/.cache/lethe."""
    return os.environ.get("LETHE_CACHE", str(Path.home() / ".cache" / "lethe"))


def cached_sha256(path: Path) -> str:
    """SHA-256 of a file; a large file is read only if its size or times changed since last time."""
    status = path.stat()
    if status.st_size < LARGE_FILE:
        return sha256(path)
    # The time of the last change of the inode cannot be set by copying tools.
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    cache = Path(cache_folder(), "hashes", f"{name}.json")
    try:
        entry = json.loads(cache.read_text("utf-8"))
        if entry["stamp"] == stamp:
            return entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # There is no usable entry.
    digest = sha256(path)
    # If the cache cannot be written, the next job hashes the file again.
    with suppress(OSError):
        write_text(cache, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest
