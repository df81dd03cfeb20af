from pathlib import Path

from lethe import tables
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity.association_files import read_associations
from lethe.similarity.correlation import correlations


def score_associations(z: Path, associations: list[str], scores: Path, tasks: dict) -> None:
    """Correlates associations with measured forgetting, beside forgetting on other tasks."""
    measured = forgetting_matrix.read(z)
    read = read_associations(associations, measured)
    tables.write_csv(scores, correlations(measured, tasks, read))


if __name__ == "__main__":
    paths = {"z": Path(snakemake.input.matrix), "scores": Path(snakemake.output.scores)}
    read, tasks = list(snakemake.input.associations), snakemake.params.tasks
    run(score_associations, snakemake.log[0], **paths, associations=read, tasks=tasks)
