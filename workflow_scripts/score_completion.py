from pathlib import Path

from lethe import matrix, tables
from lethe.completion.evaluation import evaluate
from lethe.config.analysis import Completion
from lethe.jobs import run


def score_completion(z: Path, scores: Path, completion: dict, tasks: dict) -> None:
    """Scores every completion method on the tasks it has not seen."""
    c = Completion(**completion)
    settings = (c.methods, c.probes, c.seeds, c.threshold, c.options())
    tables.write_csv(scores, evaluate(matrix.read(z), tasks, *settings))


if __name__ == "__main__":
    params = snakemake.params
    paths = {"z": Path(snakemake.input.matrix), "scores": Path(snakemake.output.scores)}
    settings = {"completion": params.completion, "tasks": params.tasks}
    run(score_completion, snakemake.log[0], **paths, **settings)
