from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_examples, read_upstream
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.measure.multitask import measure_multitask
from lethe.replay.sequence_step import multitask_parts


def multitask_row(
    inputs: Mapping[str, str],
    row: Path,
    checkpoint: Path,
    model_name: str,
    order: str,
    seed: int,
    tasks: list[str],
    epochs: dict[str, float],
    groups: dict[str, str],
    heldout_kl: bool,
    recipe: Recipe,
    scoring: Scoring,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on all tasks of an order mixed and measures what every upstream example lost."""
    mixture = multitask_parts(
        dict(zip(tasks, map(read_examples, inputs["training"]), strict=True)),
        dict(zip(tasks, map(read_examples, inputs["evaluation"]), strict=True)),
        recipe=recipe,
        epochs=epochs,
        groups=groups,
    )
    # A job has one task. measure_multitask puts the mixture in the place of its examples.
    first_task = {"train": inputs["training"][0], "evaluation": inputs["evaluation"][0]}
    shared_files = {key: inputs[key] for key in ("card", "base", "upstream")}
    job = fine_tune_job(
        shared_files | first_task,
        recipe=recipe,
        scoring=scoring,
        threads=threads,
        gpus=gpus,
        unfinished=checkpoint,
        halvings=halvings,
    )
    measured = measure_multitask(
        job,
        read_upstream(inputs["upstream"]),
        mixture,
        seed=seed,
        heldout_kl=heldout_kl,
        title=f"{order}, all tasks mixed",
    )
    if distributed.rank() == 0:
        about = measured.about | {"model": model_name, "order": order}
        rows.write_row(row, replace(measured, about=about))
        job.finish()


if __name__ == "__main__":
    run(
        multitask_row,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        row=Path(snakemake.output.row),
        checkpoint=Path(snakemake.params.checkpoint),
        model_name=snakemake.wildcards.model,
        order=snakemake.wildcards.order,
        seed=int(snakemake.wildcards.seed),
        tasks=snakemake.params.multitask["tasks"],
        epochs=snakemake.params.multitask["epochs"],
        groups=snakemake.params.multitask["groups"],
        heldout_kl=snakemake.params.multitask.get("heldout_kl", False),
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
