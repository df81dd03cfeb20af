import shutil
from pathlib import Path

from lethe.config.model_settings import Scoring
from lethe.data.examples import read_upstream
from lethe.engine import models
from lethe.files import read_json
from lethe.jobs.running import beside, run
from lethe.matrix import rows
from lethe.measure import forgetting


def score_base(
    card: Path, upstream: Path, base: Path, scoring: dict, halvings: int, threads: int, gpu: int
) -> None:
    """Scores the upstream examples with the untouched base model."""
    models.use_machine(threads, gpu)
    described, settings = read_json(card), Scoring(**scoring)
    model, tokenizer = models.load(described, settings.weights, gpu)
    examples = read_upstream(upstream)
    shared = {"model": described, "scoring": scoring}
    unfinished = beside(base)
    how = (shared, settings, unfinished, halvings)
    losses = forgetting.base_losses(model, tokenizer, examples, *how)
    rows.write(base, losses)
    shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    paths = {name: Path(snakemake.input[name]) for name in ("card", "upstream")}
    machine = {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    machine["halvings"] = snakemake.resources.halvings
    base, scoring = Path(snakemake.output.base), snakemake.params.scoring
    run(score_base, snakemake.log[0], **paths, base=base, scoring=scoring, **machine)
