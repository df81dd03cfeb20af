from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.files import sync_folder
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.matrix.gathering import with_identity
from lethe.measure.fine_tune_job import fine_tune_job


def measure_row(
    inputs: Mapping[str, str],
    row: Path,
    weights: Path | None,
    checkpoint: Path,
    model_name: str,
    task: str,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on one task and measures what every upstream example lost."""
    job = fine_tune_job(
        inputs,
        recipe=recipe,
        scoring=scoring,
        group=group,
        threads=threads,
        gpus=gpus,
        unfinished=checkpoint,
        halvings=halvings,
    )
    model, tokenizer, measured = job.run(read_upstream(inputs["upstream"]), title=task)
    if distributed.rank():
        return
    if weights is not None:
        model.save_pretrained(weights)
        tokenizer.save_pretrained(weights)
        sync_folder(weights)
    rows.write_row(row, with_identity(measured, model=model_name, task=task))
    job.finish()


if __name__ == "__main__":
    weights = snakemake.output.get("weights")
    run(
        measure_row,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        row=Path(snakemake.output.row),
        weights=Path(weights) if weights else None,
        checkpoint=Path(snakemake.params.checkpoint),
        model_name=snakemake.wildcards.model,
        task=snakemake.wildcards.task,
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe.get("group", ""),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
