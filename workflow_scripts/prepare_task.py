from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.examples import write_examples
from lethe.data.sources import task_examples
from lethe.jobs.running import run


def prepare_task(train: Path, evaluation: Path, named: dict, **how) -> None:
    """Draws the training and evaluation examples of one task."""
    source = TypeAdapter(Source).validate_python(named["source"])
    drawn = task_examples(source, named["where"], **how)
    write_examples(train, drawn[0])
    write_examples(evaluation, drawn[1])


if __name__ == "__main__":
    params = snakemake.params
    how = {"named": params.source, "archive": params.archive, "counts": params.counts}
    paths = {name: Path(snakemake.output[name]) for name in ("train", "evaluation")}
    task = snakemake.wildcards.task
    run(prepare_task, snakemake.log[0], **paths, task=task, **how, seed=params.seed)
