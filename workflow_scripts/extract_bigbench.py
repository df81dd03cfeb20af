from pathlib import Path

from lethe.data.bigbench import extract
from lethe.jobs.running import run


def extract_bigbench(package: Path, archive: Path) -> None:
    """Keeps the files of the BIG-bench package that hold examples."""
    extract(package, archive)


if __name__ == "__main__":
    run(
        extract_bigbench,
        snakemake.log[0],
        package=Path(snakemake.input.package),
        archive=Path(snakemake.output.archive),
    )
