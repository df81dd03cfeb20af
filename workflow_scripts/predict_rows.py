from pathlib import Path

from lethe.completion.evaluation import predict_rows as predict
from lethe.completion.sibling import read_sibling_rows
from lethe.config.analysis_settings import CompletionSettings
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.replay.predictions import predict_without_own_row


def predict_rows(
    z: Path,
    upstream: Path,
    predictions: Path,
    method: str,
    completion: CompletionSettings,
    tasks: dict[str, Task],
    probes: int,
    choice: str,
    seed: int,
    leave_one_out: bool,
    sibling: Path | None,
) -> None:
    """Predicts the forgetting of each test task from a few replayable examples of its row."""
    examples = read_upstream(upstream)
    predict_tested = predict_without_own_row if leave_one_out else predict
    measured = forgetting_matrix.read_matrix(z)
    predicted = predict_tested(
        measured,
        tasks,
        method=method,
        probes=probes,
        choice=choice,
        seed=seed,
        allowed=[example.split == "replayable" for example in examples],
        domains=[example.domain for example in examples],
        options=completion.options(),
        sibling=read_sibling_rows(sibling, measured) if sibling else None,
    )
    forgetting_matrix.write_matrix(predictions, predicted)


if __name__ == "__main__":
    run(
        predict_rows,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        upstream=Path(snakemake.input.upstream),
        predictions=Path(snakemake.output.predictions),
        method=snakemake.wildcards.method,
        completion=CompletionSettings(**snakemake.params.completion),
        tasks=tasks_from_pairs(snakemake.params.tasks),
        probes=snakemake.params.probes,
        choice=snakemake.params.choice,
        seed=snakemake.params.seed,
        leave_one_out=snakemake.params.get("leave_one_out", False),
        sibling=Path(snakemake.input.sibling) if snakemake.input.get("sibling") else None,
    )
