from pathlib import Path

from lethe.engine import models
from lethe.files import write_json
from lethe.jobs.running import run


def locate_model(card: Path, model: dict) -> None:
    """Writes down which model of the hub or which folder is meant."""
    template = models.chat_template(model["chat_template"])
    where = (model["path"], model["revision"], model["trust_remote_code"])
    write_json(card, models.card(*where, template, model["attention"]))


if __name__ == "__main__":
    card = Path(snakemake.output.card)
    run(locate_model, snakemake.log[0], card=card, model=snakemake.params.model)
