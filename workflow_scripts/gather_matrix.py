from pathlib import Path

from lethe import tables
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, rows


def gather_matrix(
    row_files: list[Path],
    z: Path,
    summaries: Path,
    tasks: dict,
    mixed_machines: bool,
    wanted: dict,
) -> None:
    """Stacks the rows into Z, refusing rows that do not belong together."""
    measured = {path.stem: (path, rows.read(path)) for path in row_files}
    gathered = {task: measured[task] for task in tasks}
    forgetting_matrix.write(z, forgetting_matrix.gather(gathered, mixed_machines, wanted))
    lines = [rows.summary(task, *tasks[task], row) for task, (_, row) in gathered.items()]
    tables.write_csv(summaries, lines)


if __name__ == "__main__":
    params = snakemake.params
    run(
        gather_matrix,
        snakemake.log[0],
        row_files=[Path(path) for path in snakemake.input.rows],
        z=Path(snakemake.output.matrix),
        summaries=Path(snakemake.output.summaries),
        tasks=params.tasks,
        mixed_machines=params.mixed_machines,
        wanted={"recipe": params.recipe, "scoring": params.scoring},
    )
