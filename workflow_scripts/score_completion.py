from pathlib import Path

import numpy as np

from lethe import tables
from lethe.completion.evaluation import evaluate
from lethe.completion.model_prior import read_prior
from lethe.completion.sibling import read_sibling_rows
from lethe.config.analysis_settings import CompletionSettings
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.data.examples import read_upstream
from lethe.errors import LetheError
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import OF_Z
from lethe.similarity.association_files import read_associations, read_example_vectors


def score_completion(
    z: Path,
    upstream: str | None,
    associations: dict[str, str],
    sibling: str | None,
    prior: str | None,
    embeddings: str | None,
    scores: Path,
    completion: CompletionSettings,
    tasks: dict[str, Task],
) -> None:
    """Scores every completion method on the tasks it has not seen."""
    measured = forgetting_matrix.read_matrix(z)
    lines = evaluate(
        measured,
        tasks,
        methods=completion.methods,
        probes=completion.probes,
        seeds=completion.seeds,
        threshold=completion.threshold,
        options=completion.options(),
        probe_choice=completion.probe_choice,
        domains=[example.domain for example in read_upstream(upstream)] if upstream else None,
        associations=read_associations(associations, measured),
        in_domain_only=OF_Z,
        sibling=_sibling_rows(sibling, measured) if sibling else None,
        prior=_prior(prior, measured) if prior else None,
        embeddings=read_example_vectors(embeddings, measured) if embeddings else None,
    )
    tables.write_csv(scores, lines)


def _sibling_rows(path: str, measured: forgetting_matrix.Matrix) -> np.ndarray:
    try:
        return read_sibling_rows(Path(path), measured)
    except LetheError as error:
        raise LetheError(f"completion.sibling: {error}")


def _prior(path: str, measured: forgetting_matrix.Matrix) -> forgetting_matrix.Matrix:
    try:
        return read_prior(Path(path), measured)
    except LetheError as error:
        raise LetheError(f"completion.prior: {error}")


if __name__ == "__main__":
    run(
        score_completion,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        upstream=snakemake.input.get("upstream"),
        associations=dict(
            zip(snakemake.params.association_names, snakemake.input.associations, strict=True)
        ),
        sibling=snakemake.input.get("sibling") or None,
        prior=snakemake.input.get("prior") or None,
        embeddings=snakemake.input.get("embeddings") or None,
        scores=Path(snakemake.output.scores),
        completion=CompletionSettings(**snakemake.params.completion),
        tasks=tasks_from_pairs(snakemake.params.tasks),
    )
