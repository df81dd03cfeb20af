import shutil
from pathlib import Path

from lethe.config.model_settings import Scoring
from lethe.data.examples import read_upstream
from lethe.engine import models
from lethe.files import read_json
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.measure import forgetting


def score_base(
    card: Path,
    upstream: Path,
    base: Path,
    checkpoint: Path,
    scoring: Scoring,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Scores the upstream examples with the untouched base model."""
    models.use_machine(threads, gpus)
    described = read_json(card)
    model, tokenizer = models.load(described, scoring.weights, gpus)
    losses = forgetting.base_losses(
        model,
        tokenizer,
        read_upstream(upstream),
        {"model": described, "scoring": scoring.model_dump(mode="json")},
        scoring,
        checkpoint,
        halvings,
    )
    rows.write(base, losses)
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    run(
        score_base,
        snakemake.log[0],
        card=Path(snakemake.input.card),
        upstream=Path(snakemake.input.upstream),
        base=Path(snakemake.output.base),
        checkpoint=Path(snakemake.params.checkpoint),
        scoring=Scoring(**snakemake.params.scoring),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
