from pathlib import Path

from lethe.files import write_json
from lethe.jobs.running import run


def locate_model(card: Path, model: dict) -> None:
    """Records which model of the hub, or of a folder, is the base model."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.engine import models

    content = models.card(
        model["path"],
        revision=model["revision"],
        trust_remote_code=model["trust_remote_code"],
        chat_template=models.chat_template(model["chat_template"]),
        attention=model["attention"],
    )
    write_json(card, content)


if __name__ == "__main__":
    run(
        locate_model,
        snakemake.log[0],
        warm_start=True,
        card=Path(snakemake.output.card),
        model=snakemake.params.model,
    )
