from collections.abc import Mapping
from pathlib import Path

from lethe.engine import distributed
from lethe.jobs.warm import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.similarity import directions


def measure_direction(
    inputs: Mapping, direction: Path, task: str, projection: dict, **settings
) -> None:
    """Fine-tunes as the row was measured, and sketches where the weights went."""
    job = fine_tune_job(inputs, **settings)
    moved = directions.measure_direction(job, rows.read(inputs["row"]), task, projection=projection)
    if distributed.rank() == 0:
        directions.write_direction(direction, moved)


if __name__ == "__main__":
    settings = {"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring}
    settings |= {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    settings["halvings"] = snakemake.resources.halvings
    settings |= {"projection": snakemake.params.projection, "inputs": snakemake.input}
    direction, task = Path(snakemake.output.direction), snakemake.wildcards.task
    run(measure_direction, snakemake.log[0], direction=direction, task=task, **settings)
