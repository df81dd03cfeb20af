from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring
from lethe.cost import calibration
from lethe.data.examples import read_examples, read_upstream
from lethe.engine import distributed, models
from lethe.files import write_json
from lethe.jobs.warm import run


def calibrate_model(
    inputs: Mapping, output: Path, model: dict, recipe: dict, scoring: dict, plan: dict, **machine
) -> None:
    """Tries a few steps of training and of scoring."""
    models.use_machine(machine["threads"], machine["gpu"])
    settings = Scoring(**scoring)
    load = partial(models.like, Path(inputs["model"]), model, settings.weights, machine["gpu"])
    parts = [
        {Path(path).parent.name: read_examples(path) for path in inputs[name]}
        for name in ("train", "evaluation")
    ]
    train, evaluation = parts
    sample = calibration.Sample(
        train=train, evaluation=evaluation, upstream=read_upstream(inputs["upstream"])
    )
    measured = calibration.calibrate_model(
        load,
        sample,
        recipe=Recipe(**recipe),
        scoring=settings,
        steps=plan["steps"],
        examples=plan["examples"],
    )
    if distributed.rank() == 0:
        write_json(output, measured)


if __name__ == "__main__":
    params, output = snakemake.params, Path(snakemake.output.calibration)
    settings = {name: params[name] for name in ("model", "recipe", "scoring", "plan")}
    settings |= {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    run(calibrate_model, snakemake.log[0], inputs=snakemake.input, output=output, **settings)
