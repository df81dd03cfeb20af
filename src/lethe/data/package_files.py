"""Files of PyPI packages, which are downloaded and checked but never installed."""

import subprocess
import sys
import tempfile
from pathlib import Path

from lethe.config.data_settings import BigBenchSource
from lethe.data.bigbench import extract
from lethe.errors import LetheError
from lethe.files import atomic_write


def download_package(package: Path, requirement: str, sha256: str) -> None:
    """Downloads one file of a PyPI package with pip.

    pip checks the hash before it opens the file, so that no unexpected code can run.

    Parameters
    ----------
    package
        The file to write. Its name is the name of the file on PyPI.
    requirement
        `name==version`.

    Raises
    ------
    LetheError
        If pip fails; its messages are on stderr.
    """
    is_source = package.name.endswith(".tar.gz")
    package.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", "utf-8")
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"),
            *("--no-binary" if is_source else "--only-binary", ":all:"),
            *("--dest", folder, "--requirement", str(requirements)),
        ]
        pip = subprocess.run(command, capture_output=True, text=True, check=False)
        print(pip.stdout + pip.stderr, file=sys.stderr)
        if pip.returncode:
            raise LetheError(f"pip could not download {requirement}; its reason stands above")
        with atomic_write(package) as part:
            Path(folder, package.name).rename(part)


def bigbench_archive(source: BigBenchSource, cache: Path) -> Path:
    """The BIG-bench extract in the cache; it is downloaded if it is not there."""
    archive = cache / f"bigbench-{source.version}.zip"
    if not archive.exists():
        package = cache / f"bigbench-{source.version}.tar.gz"
        if not package.exists():
            download_package(package, f"bigbench=={source.version}", source.sha256)
        extract(package, archive)
        package.unlink()
    return archive
