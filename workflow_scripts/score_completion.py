from pathlib import Path

from lethe import tables
from lethe.completion.evaluation import evaluate
from lethe.config.analysis_settings import CompletionSettings
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import OF_Z
from lethe.similarity.association_files import read_associations


def score_completion(
    z: Path,
    upstream: Path | None,
    associations: list[str],
    scores: Path,
    completion: dict,
    tasks: dict,
) -> None:
    """Scores every completion method on the tasks it has not seen."""
    c = CompletionSettings(**completion)
    domains = [example.domain for example in read_upstream(upstream)] if upstream else None
    settings = (c.methods, c.probes, c.seeds, c.threshold, c.options())
    measured = forgetting_matrix.read(z)
    choice = {"probe_choice": c.probe_choice, "domains": domains, "in_domain_only": OF_Z}
    choice["associations"] = read_associations(associations, measured)
    tables.write_csv(scores, evaluate(measured, tasks, *settings, **choice))


if __name__ == "__main__":
    params = snakemake.params
    upstream = snakemake.input.get("upstream")
    paths = {"z": Path(snakemake.input.matrix), "upstream": Path(upstream) if upstream else None}
    paths["scores"] = Path(snakemake.output.scores)
    paths["associations"] = list(snakemake.input.get("associations", []))
    settings = {"completion": params.completion, "tasks": params.tasks}
    run(score_completion, snakemake.log[0], **paths, **settings)
