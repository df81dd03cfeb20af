import shutil
from pathlib import Path

from lethe.config.model_settings import Pretraining
from lethe.data.examples import read_examples
from lethe.files import sync_folder, write_json
from lethe.jobs.running import run


def pretrain_model(
    corpus: Path,
    card: Path,
    folder: Path,
    checkpoint: Path,
    name: str,
    architecture: str,
    attention: str,
    settings: Pretraining,
    threads: int,
    gpus: int,
) -> None:
    """Pretrains a small model on the upstream corpus."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.engine import models, pretraining

    models.use_machine(threads, gpus)
    tokenizer, sequences = pretraining.corpus(folder, read_examples(corpus), settings)
    end = tokenizer.eos_token_id
    network = models.from_scratch(architecture, settings, len(tokenizer), end)
    network.to(models.device_for(gpus))
    pretraining.pretrain(network, sequences, settings, checkpoint, f"pretraining {name}")
    network.save_pretrained(folder)
    sync_folder(folder)
    write_json(card, models.card(str(folder), attention=attention))
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    run(
        pretrain_model,
        snakemake.log[0],
        warm_start=True,
        corpus=Path(snakemake.input.corpus),
        card=Path(snakemake.output.card),
        folder=Path(snakemake.params.folder),
        checkpoint=Path(snakemake.params.checkpoint),
        name=snakemake.wildcards.model,
        architecture=snakemake.params.model["architecture"],
        attention=snakemake.params.model["attention"],
        settings=Pretraining(**snakemake.params.model["pretraining"]),
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
