from pathlib import Path

from lethe import tables
from lethe.completion.precision import curve_of_table
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def estimate_precision(
    z: Path,
    precision: Path,
    probes: list[int],
    training_tasks: list[int],
    tasks: dict[str, Task],
) -> None:
    """Predicts every training task from others, by number of probes and of training tasks."""
    measured = forgetting_matrix.read_matrix(z)
    tables.write_csv(precision, curve_of_table(measured, tasks, probes, training_tasks))


if __name__ == "__main__":
    run(
        estimate_precision,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        precision=Path(snakemake.output.precision),
        probes=snakemake.params.probes,
        training_tasks=snakemake.params.training_tasks,
        tasks=tasks_from_pairs(snakemake.params.tasks),
    )
