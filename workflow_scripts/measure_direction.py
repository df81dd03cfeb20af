from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job


def measure_direction(
    inputs: Mapping[str, str],
    direction: Path,
    task: str,
    projection: dict,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes as for the row, and sketches how the weights moved."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.similarity import directions

    job = fine_tune_job(
        inputs,
        recipe=recipe,
        scoring=scoring,
        group=group,
        threads=threads,
        gpus=gpus,
        halvings=halvings,
    )
    row = rows.read_row(inputs["row"])
    sketch = directions.measure_direction(job, row, task, projection=projection)
    if distributed.rank() == 0:
        directions.write_direction(direction, sketch)


if __name__ == "__main__":
    run(
        measure_direction,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        direction=Path(snakemake.output.direction),
        task=snakemake.wildcards.task,
        projection=snakemake.params.projection,
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe.get("group", ""),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
