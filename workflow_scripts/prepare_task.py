from pathlib import Path

from pydantic import TypeAdapter

from lethe.config.data_settings import Source
from lethe.data.bigbench import cached_extract, package_of
from lethe.data.examples import write_examples
from lethe.data.sources import task_examples
from lethe.jobs.running import run


def prepare_task(
    train: Path,
    evaluation: Path,
    task: str,
    source: Source,
    where: str,
    cache: Path,
    counts: dict,
    seed: int,
) -> None:
    """Draws the training and evaluation examples of one task."""
    archive = cached_extract(package_of(source), cache) if source.kind == "bigbench" else None
    train_examples, evaluation_examples = task_examples(
        source, where, task=task, archive=archive, counts=counts, seed=seed
    )
    write_examples(train, train_examples)
    write_examples(evaluation, evaluation_examples)


if __name__ == "__main__":
    run(
        prepare_task,
        snakemake.log[0],
        train=Path(snakemake.output.train),
        evaluation=Path(snakemake.output.evaluation),
        task=snakemake.wildcards.task,
        source=TypeAdapter(Source).validate_python(snakemake.params.source["source"]),
        where=snakemake.params.source["where"],
        cache=Path(snakemake.params.cache),
        counts=snakemake.params.counts,
        seed=snakemake.params.seed,
    )
