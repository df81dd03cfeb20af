from pathlib import Path

from lethe import matrix, tables
from lethe.completion.evaluation import evaluate
from lethe.config.analysis import Completion
from lethe.data.examples import read_upstream
from lethe.jobs import run


def score_completion(
    z: Path, upstream: Path | None, scores: Path, completion: dict, tasks: dict
) -> None:
    """Scores every completion method on the tasks it has not seen."""
    c = Completion(**completion)
    domains = [example.domain for example in read_upstream(upstream)] if upstream else None
    settings = (c.methods, c.probes, c.seeds, c.threshold, c.options())
    choice = {"probe_choice": c.probe_choice, "domains": domains}
    tables.write_csv(scores, evaluate(matrix.read(z), tasks, *settings, **choice))


if __name__ == "__main__":
    params = snakemake.params
    upstream = snakemake.input.get("upstream")
    paths = {"z": Path(snakemake.input.matrix), "upstream": Path(upstream) if upstream else None}
    paths["scores"] = Path(snakemake.output.scores)
    settings = {"completion": params.completion, "tasks": params.tasks}
    run(score_completion, snakemake.log[0], **paths, **settings)
