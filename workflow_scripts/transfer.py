from pathlib import Path

from lethe import tables
from lethe.analysis.transfer import evaluate_transfer
from lethe.config.analysis_settings import TransferSettings
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def transfer(
    matrix_files: dict[str, Path], scores: Path, tasks: dict[str, Task], settings: TransferSettings
) -> None:
    """Predicts each model's rows from those of every other model."""
    matrices = {model: forgetting_matrix.read_matrix(path) for model, path in matrix_files.items()}
    lines = evaluate_transfer(
        matrices,
        tasks,
        own_rows=settings.own_rows,
        probes=settings.probes,
        seeds=settings.seeds,
    )
    tables.write_csv(scores, lines)


if __name__ == "__main__":
    paths = [Path(path) for path in snakemake.input.matrices]
    run(
        transfer,
        snakemake.log[0],
        matrix_files=dict(zip(snakemake.params.models, paths, strict=True)),
        scores=Path(snakemake.output.scores),
        tasks=tasks_from_pairs(snakemake.params.tasks),
        settings=TransferSettings(**snakemake.params.transfer),
    )
