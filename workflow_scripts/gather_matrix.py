from pathlib import Path

from lethe import tables
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, gathering


def gather_matrix(
    row_files: list[Path],
    model: str,
    z: Path,
    summaries: Path,
    tasks: dict[str, Task],
    mixed_machines: bool,
    settings: dict,
) -> None:
    """Stacks the rows into Z, and refuses rows that do not belong together."""
    gathered = gathering.gather_row_files(
        dict(zip(tasks, row_files, strict=True)),
        model=model,
        mixed_machines=mixed_machines,
        settings=settings,
    )
    forgetting_matrix.write_matrix(z, gathered.matrix)
    tables.write_csv(summaries, gathering.summarise_rows(gathered, tasks))


if __name__ == "__main__":
    run(
        gather_matrix,
        snakemake.log[0],
        row_files=[Path(path) for path in snakemake.input.rows],
        model=snakemake.wildcards.model,
        z=Path(snakemake.output.matrix),
        summaries=Path(snakemake.output.summaries),
        tasks=tasks_from_pairs(snakemake.params.tasks),
        mixed_machines=snakemake.params.mixed_machines,
        settings={"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring},
    )
