from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.examples import Source
from lethe.data.examples import train_and_eval, write_examples
from lethe.data.sources import examples
from lethe.jobs import run


def prepare_task(
    train: Path,
    evaluation: Path,
    task: str,
    named: dict,
    archive: str | None,
    counts: dict,
    seed: int,
) -> None:
    """Draws the training and evaluation examples of one task."""
    source = TypeAdapter(Source).validate_python(named["source"])
    found = examples(source, named["where"], archive=archive)
    drawn = train_and_eval(found, counts["train"], counts["eval"], seed, task)
    write_examples(train, drawn[0])
    write_examples(evaluation, drawn[1])


if __name__ == "__main__":
    params = snakemake.params
    settings = {"named": params.source, "archive": params.archive, "counts": params.counts}
    paths = {name: Path(snakemake.output[name]) for name in ("train", "evaluation")}
    task = snakemake.wildcards.task
    run(prepare_task, snakemake.log[0], **paths, task=task, **settings, seed=params.seed)
