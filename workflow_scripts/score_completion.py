from collections.abc import Callable
from pathlib import Path
from typing import Any

from lethe import tables
from lethe.completion.evaluation import evaluate
from lethe.completion.model_prior import read_prior
from lethe.completion.sibling import read_sibling_rows
from lethe.config.analysis_settings import CompletionSettings
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.data.examples import domains_in_order
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
        domains=domains_in_order(measured.example_ids, Path(upstream)) if upstream else None,
        associations=read_associations(associations, measured),
        in_domain_only=OF_Z,
        sibling=_read_other("sibling", read_sibling_rows, sibling, measured),
        prior=_read_other("prior", read_prior, prior, measured),
        embeddings=read_example_vectors(embeddings, measured) if embeddings else None,
    )
    tables.write_csv(scores, lines)


def _read_other(
    key: str,
    read: Callable[[Path, forgetting_matrix.Matrix], Any],
    path: str | None,
    measured: forgetting_matrix.Matrix,
) -> Any:
    """The rows of the other model that the setting names; None if it names none."""
    if path is None:
        return None
    try:
        return read(Path(path), measured)
    except LetheError as error:
        raise LetheError(f"completion.{key}: {error}")


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
