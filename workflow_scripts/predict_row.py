from pathlib import Path

from lethe.completion.sibling import read_sibling_rows
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.replay.predictions import predict_row as predict
from lethe.replay.predictions import read_measured_rows


def predict_row(
    training_rows: Path,
    training_tasks: list[str],
    row: Path,
    task: str,
    upstream: Path,
    prediction: Path,
    method: str,
    options: dict[str, dict],
    probes: int,
    choice: str,
    seed: int,
    sibling: Path | None,
) -> None:
    """Predicts the forgetting of a task from a few replayable examples of its row."""
    examples = read_upstream(upstream)
    measured = read_measured_rows(training_rows, training_tasks, row, task)
    predicted = predict(
        measured,
        task,
        method=method,
        probes=probes,
        choice=choice,
        seed=seed,
        allowed=[example.split == "replayable" for example in examples],
        domains=[example.domain for example in examples],
        options=options,
        sibling=read_sibling_rows(sibling, measured) if sibling else None,
    )
    forgetting_matrix.write_matrix(prediction, predicted)


if __name__ == "__main__":
    run(
        predict_row,
        snakemake.log[0],
        training_rows=Path(snakemake.input.training_rows),
        training_tasks=snakemake.params.training_tasks,
        row=Path(snakemake.input.row),
        task=snakemake.wildcards.task,
        upstream=Path(snakemake.input.upstream),
        prediction=Path(snakemake.output.prediction),
        method=snakemake.wildcards.method,
        options=snakemake.params.options,
        probes=snakemake.params.probes,
        choice=snakemake.params.choice,
        seed=snakemake.params.seed,
        sibling=Path(snakemake.input.sibling) if snakemake.input.get("sibling") else None,
    )
