from collections.abc import Mapping
from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.running import beside
from lethe.jobs.warm import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job


def measure_row(inputs: Mapping[str, str], row: Path, task: str, **settings) -> None:
    """Fine-tunes on one task and measures what was forgotten."""
    job = fine_tune_job(inputs, **settings, unfinished=beside(row))
    model, tokenizer, measured = job.run(read_upstream(inputs["upstream"]), title=task)
    if distributed.rank():
        return
    if job.recipe.keep_weights:
        folder = row.parent.parent / "weights" / task
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    rows.write(row, measured)
    job.finish()


if __name__ == "__main__":
    settings = {"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring}
    settings |= {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    settings["halvings"] = snakemake.resources.halvings
    row, task = Path(snakemake.output.row), snakemake.wildcards.task
    run(measure_row, snakemake.log[0], inputs=snakemake.input, row=row, task=task, **settings)
