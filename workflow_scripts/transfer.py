from pathlib import Path

from lethe import tables
from lethe.analysis.transfer import evaluate
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def transfer(matrix_files: dict[str, Path], scores: Path, tasks: dict, settings: dict) -> None:
    """Predicts each model's rows from those of every other model."""
    matrices = {model: forgetting_matrix.read(path) for model, path in matrix_files.items()}
    tables.write_csv(scores, evaluate(matrices, tasks, **settings))


if __name__ == "__main__":
    paths = [Path(path) for path in snakemake.input.matrices]
    run(
        transfer,
        snakemake.log[0],
        matrix_files=dict(zip(snakemake.params.models, paths, strict=True)),
        scores=Path(snakemake.output.scores),
        tasks=snakemake.params.tasks,
        settings=snakemake.params.transfer,
    )
