from pathlib import Path

from lethe import tables
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity.association_files import read_associations
from lethe.similarity.correlation import correlate_with_forgetting


def score_associations(
    z: Path, association_files: dict[str, str], scores: Path, tasks: dict[str, Task]
) -> None:
    """Correlates associations with measured forgetting, and forgetting on other tasks too."""
    measured = forgetting_matrix.read_matrix(z)
    associations = read_associations(association_files, measured)
    tables.write_csv(scores, correlate_with_forgetting(measured, tasks, associations))


if __name__ == "__main__":
    run(
        score_associations,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        association_files=dict(
            zip(snakemake.params.association_names, snakemake.input.associations, strict=True)
        ),
        scores=Path(snakemake.output.scores),
        tasks=tasks_from_pairs(snakemake.params.tasks),
    )
