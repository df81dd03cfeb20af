from functools import partial
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import read_examples, read_upstream
from lethe.engine import distributed
from lethe.files import write_json
from lethe.jobs.running import run


def calibrate_model(
    base: Path,
    upstream: Path,
    train_files: list[str],
    evaluation_files: list[str],
    output: Path,
    tasks: list[str],
    model: dict,
    recipe: Recipe,
    scoring: Scoring,
    plan: dict,
    threads: int,
    gpus: int,
) -> None:
    """Times a few steps of training and of scoring."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.cost import calibration
    from lethe.engine import models

    models.use_machine(threads, gpus)
    load = partial(models.load_for_timing, base, model, scoring.weights, gpus)
    sample = calibration.Sample(
        train=dict(zip(tasks, map(read_examples, train_files), strict=True)),
        evaluation=dict(zip(tasks, map(read_examples, evaluation_files), strict=True)),
        upstream=read_upstream(upstream),
    )
    measured = calibration.calibrate_model(
        load,
        sample,
        recipe=recipe,
        scoring=scoring,
        steps=plan["steps"],
        examples=plan["examples"],
    )
    if distributed.rank() == 0:
        write_json(output, measured)


if __name__ == "__main__":
    run(
        calibrate_model,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        base=Path(snakemake.input.model),
        upstream=Path(snakemake.input.upstream),
        train_files=list(snakemake.input.train),
        evaluation_files=list(snakemake.input.evaluation),
        output=Path(snakemake.output.calibration),
        tasks=snakemake.params.tasks,
        model=snakemake.params.model,
        recipe=Recipe(**snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        plan=snakemake.params.plan,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
