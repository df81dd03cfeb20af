import shutil
from pathlib import Path

from lethe.config.model_settings import Scoring
from lethe.data.examples import read_upstream
from lethe.files import read_json
from lethe.jobs.running import run
from lethe.matrix import rows


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
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.engine import models
    from lethe.engine.reader import Reader
    from lethe.measure import forgetting

    models.use_machine(threads, gpus)
    model_card = read_json(card)
    losses = forgetting.base_losses(
        Reader.load(model_card, scoring, gpus),
        read_upstream(upstream),
        settings={"model": model_card, "scoring": scoring.model_dump(mode="json")},
        unfinished=checkpoint,
        halvings=halvings,
    )
    rows.write_row(base, losses)
    shutil.rmtree(checkpoint, ignore_errors=True)


if __name__ == "__main__":
    run(
        score_base,
        snakemake.log[0],
        warm_start=True,
        card=Path(snakemake.input.card),
        upstream=Path(snakemake.input.upstream),
        base=Path(snakemake.output.base),
        checkpoint=Path(snakemake.params.checkpoint),
        scoring=Scoring(**snakemake.params.scoring),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
