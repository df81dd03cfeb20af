from pathlib import Path

from lethe import tables
from lethe.config.task_table import tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity.association_files import read_associations
from lethe.similarity.correlation import correlate_with_forgetting


def score_associations(z: Path, associations: list[str], scores: Path, tasks: dict) -> None:
    """Correlates associations with measured forgetting, beside forgetting on other tasks."""
    measured = forgetting_matrix.read(z)
    read = read_associations(associations, measured)
    tables.write_csv(scores, correlate_with_forgetting(measured, tasks_from_pairs(tasks), read))


if __name__ == "__main__":
    paths = {"z": Path(snakemake.input.matrix), "scores": Path(snakemake.output.scores)}
    read, tasks = list(snakemake.input.associations), snakemake.params.tasks
    run(score_associations, snakemake.log[0], **paths, associations=read, tasks=tasks)
