import shutil
from pathlib import Path

from lethe.config.model_settings import Pretraining
from lethe.data.examples import read_examples
from lethe.engine import models, pretraining
from lethe.files import write_json
from lethe.jobs.running import run


def pretrain_model(
    corpus: Path, card: Path, folder: Path, model: dict, checkpoint: Path, threads: int, gpu: int
) -> None:
    """Pretrains a small model on the upstream corpus."""
    models.use_machine(threads, gpu)
    settings = Pretraining(**model["pretraining"])
    tokenizer, sequences = pretraining.corpus(folder, read_examples(corpus), settings)
    end = tokenizer.eos_token_id
    network = models.from_scratch(model["architecture"], settings, len(tokenizer), end)
    network.to(models.device(gpu))
    pretraining.pretrain(
        network, sequences, settings, checkpoint, f"pretraining {card.parent.name}"
    )
    network.save_pretrained(folder)
    write_json(card, models.card(str(folder), attention=model["attention"]))
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    card, weights = Path(snakemake.output.card), Path(snakemake.output.weights)
    given = {"model": snakemake.params.model, "checkpoint": Path(snakemake.params.checkpoint)}
    machine = {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    paths = {"corpus": Path(snakemake.input.corpus), "card": card, "folder": weights.parent}
    run(pretrain_model, snakemake.log[0], **paths, **given, **machine)
