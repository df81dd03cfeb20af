from collections.abc import Mapping
from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.warm import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.measure.repeats import repeat


def repeat_row(
    inputs: Mapping[str, str], files: list[Path], task: str, seed: int, **settings
) -> None:
    """Fine-tunes on a task with another seed and scores those weights once for each file."""
    job = fine_tune_job(inputs, **settings)
    found = repeat(job, read_upstream(inputs["upstream"]), seed, len(files) - 1, task)
    for path, row in zip(files if distributed.rank() == 0 else [], found, strict=False):
        rows.write(path, row)


if __name__ == "__main__":
    settings = {"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring}
    settings |= {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    settings["halvings"] = snakemake.resources.halvings
    settings |= {"task": snakemake.wildcards.task, "seed": int(snakemake.wildcards.seed)}
    files = [Path(path) for path in snakemake.output]
    run(repeat_row, snakemake.log[0], inputs=snakemake.input, files=files, **settings)
