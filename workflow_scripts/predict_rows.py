from pathlib import Path

from lethe.completion.evaluation import predict_rows as predict
from lethe.config.analysis_settings import CompletionSettings
from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix


def predict_rows(
    z: Path, upstream: Path, predictions: Path, completion: dict, tasks: dict, **choice
) -> None:
    """Predicts the forgetting of each test task from a few replayable examples of its row."""
    examples = read_upstream(upstream)
    choice["allowed"] = [example.split == "replayable" for example in examples]
    choice["domains"] = [example.domain for example in examples]
    choice["options"] = CompletionSettings(**completion).options()
    predicted = predict(forgetting_matrix.read(z), tasks, **choice)
    forgetting_matrix.write(predictions, predicted)


if __name__ == "__main__":
    params = snakemake.params
    paths = {"z": Path(snakemake.input.matrix), "upstream": Path(snakemake.input.upstream)}
    paths["predictions"] = Path(snakemake.output.predictions)
    choice = {"method": snakemake.wildcards.method, "probes": params.probes, "seed": params.seed}
    choice["choice"] = params.choice
    settings = {"completion": params.completion, "tasks": params.tasks}
    run(predict_rows, snakemake.log[0], **paths, **settings, **choice)
