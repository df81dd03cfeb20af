from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.measure.repeats import repeat


def repeat_row(
    inputs: Mapping[str, str],
    repeat_files: list[Path],
    task: str,
    seed: int,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on a task with another seed, and scores those weights once per file."""
    job = fine_tune_job(
        inputs,
        recipe=recipe,
        scoring=scoring,
        group=group,
        threads=threads,
        gpus=gpus,
        halvings=halvings,
    )
    upstream = read_upstream(inputs["upstream"])
    repeated = repeat(job, upstream, seed=seed, measurements=len(repeat_files) - 1, task=task)
    if distributed.rank() == 0:
        for path, row in zip(repeat_files, repeated, strict=True):
            rows.write_row(path, row)


if __name__ == "__main__":
    run(
        repeat_row,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        repeat_files=[Path(path) for path in snakemake.output],
        task=snakemake.wildcards.task,
        seed=int(snakemake.wildcards.seed),
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe.get("group", ""),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
