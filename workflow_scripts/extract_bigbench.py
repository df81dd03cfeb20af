from pathlib import Path

from lethe.data.bigbench import cached_extract
from lethe.data.packages import Package
from lethe.files import write_json
from lethe.jobs.running import run


def extract_bigbench(package: Package, cache: Path, record: Path) -> None:
    """Makes sure that the cache holds the files of the BIG-bench package that hold examples."""
    archive = cached_extract(package, cache)
    write_json(record, {"path": archive})


if __name__ == "__main__":
    run(
        extract_bigbench,
        snakemake.log[0],
        package=snakemake.params.package,
        cache=Path(snakemake.params.cache),
        record=Path(snakemake.output.record),
    )
