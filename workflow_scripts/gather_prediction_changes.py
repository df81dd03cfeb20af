from collections.abc import Mapping
from pathlib import Path

from lethe import tables
from lethe.analysis.finer_measures import describe_finer_measures, finer_matrices
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.matrix.prediction_files import stack_prediction_files


def gather_prediction_changes(
    z: Path, prediction_files: Mapping[str, Path], matrices: Mapping[str, Path], table: Path
) -> None:
    """Stacks the changed predictions of all rows into matrices, and compares each with Z."""
    measured = forgetting_matrix.read_matrix(z)
    files = {task: prediction_files[task] for task in measured.tasks}
    measures = stack_prediction_files(files, measured.example_ids)
    for name, values in finer_matrices(measures).items():
        matrix = forgetting_matrix.Matrix(
            values=values, tasks=measured.tasks, example_ids=measured.example_ids
        )
        forgetting_matrix.write_matrix(matrices[name], matrix)
    tables.write_csv(table, describe_finer_measures(measured.values, measures))


if __name__ == "__main__":
    run(
        gather_prediction_changes,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        prediction_files=dict(
            zip(snakemake.params.tasks, map(Path, snakemake.input.changes), strict=True)
        ),
        matrices={name: Path(path) for name, path in snakemake.output.items() if name != "table"},
        table=Path(snakemake.output.table),
    )
