from pathlib import Path

from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, gathering


def gather_training_rows(
    row_files: dict[str, Path], model: str, gathered: Path, mixed_machines: bool, settings: dict
) -> None:
    """Stacks the rows of the training tasks, and refuses rows that do not belong together."""
    rows = gathering.gather_row_files(
        row_files, model=model, mixed_machines=mixed_machines, settings=settings
    )
    forgetting_matrix.write_matrix(gathered, rows.matrix)


if __name__ == "__main__":
    paths = [Path(path) for path in snakemake.input.rows]
    run(
        gather_training_rows,
        snakemake.log[0],
        row_files=dict(zip(snakemake.params.tasks, paths, strict=True)),
        model=snakemake.wildcards.model,
        gathered=Path(snakemake.output.training_rows),
        mixed_machines=snakemake.params.mixed_machines,
        settings={"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring},
    )
