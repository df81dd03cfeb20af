from pathlib import Path

from lethe import tables
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, rows


def gather_matrix(
    row_files: list[Path],
    z: Path,
    summaries: Path,
    tasks: dict[str, Task],
    mixed_machines: bool,
    settings: dict,
) -> None:
    """Stacks the rows into Z, and refuses rows that do not belong together."""
    measured = {}
    for task, path in zip(tasks, row_files, strict=True):
        measured[task] = (path, rows.read_row(path))
    forgetting_matrix.write_matrix(
        z, forgetting_matrix.gather_rows(measured, mixed_machines, settings)
    )
    lines = [rows.summarise_row(row, tasks[name]) for name, (_, row) in measured.items()]
    tables.write_csv(summaries, lines)


if __name__ == "__main__":
    run(
        gather_matrix,
        snakemake.log[0],
        row_files=[Path(path) for path in snakemake.input.rows],
        z=Path(snakemake.output.matrix),
        summaries=Path(snakemake.output.summaries),
        tasks=tasks_from_pairs(snakemake.params.tasks),
        mixed_machines=snakemake.params.mixed_machines,
        settings={"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring},
    )
