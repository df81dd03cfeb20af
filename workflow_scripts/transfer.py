from pathlib import Path

from lethe import tables
from lethe.analysis.transfer import evaluate
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def transfer(matrices: dict[str, Path], scores: Path, tasks: dict, settings: dict) -> None:
    """Predicts each model's rows from every other model's."""
    read = {model: forgetting_matrix.read(path) for model, path in matrices.items()}
    tables.write_csv(scores, evaluate(read, tasks, **settings))


if __name__ == "__main__":
    params = snakemake.params
    matrices = dict(zip(params.models, map(Path, snakemake.input.matrices), strict=True))
    scores = Path(snakemake.output.scores)
    settings = {"tasks": params.tasks, "settings": params.transfer}
    run(transfer, snakemake.log[0], matrices=matrices, scores=scores, **settings)
