from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_examples, read_upstream
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.matrix.gathering import with_identity
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.replay.replay_inputs import read_replay
from lethe.replay.sequence_step import (
    EarlierExamples,
    SequenceStep,
    recipe_with_epochs,
    run_step,
)


def sequence_step(
    inputs: Mapping[str, str],
    row: Path,
    weights: Path,
    checkpoint: Path,
    model_name: str,
    order: str,
    run_name: str,
    seed: int,
    step_settings: dict,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on one task of an order and hands the weights on to the next step."""
    from lethe.engine.checkpoints import write_weights

    step = SequenceStep(
        order=order,
        run=run_name,
        seed=seed,
        tasks=step_settings["tasks"],
        earlier=step_settings["earlier"],
    )
    replay_run, replay_inputs = read_replay(
        step_settings["strategy"], step_settings["replay"], inputs, step.task
    )
    train = read_examples(inputs["train"])
    job = fine_tune_job(
        inputs,
        recipe=recipe_with_epochs(recipe, step_settings["epochs"], len(train)),
        scoring=scoring,
        group=group,
        threads=threads,
        gpus=gpus,
        unfinished=checkpoint,
        halvings=halvings,
        start=Path(inputs["start"]) if inputs["start"] else None,
    )
    earlier = step.tasks[:-1]
    evaluation = zip(earlier, inputs["earlier_evaluation"], strict=True)
    training = zip(earlier, inputs["earlier_training"], strict=False)
    model, measured = run_step(
        job,
        read_upstream(inputs["upstream"]),
        replay_run,
        step=step,
        examples=EarlierExamples(
            evaluation={task: read_examples(path) for task, path in evaluation},
            training={task: read_examples(path) for task, path in training},
        ),
        inputs=replay_inputs,
    )
    if distributed.rank():
        return
    write_weights(weights, model)
    rows.write_row(row, with_identity(measured, model=model_name, task=step.task))
    job.finish()


if __name__ == "__main__":
    run(
        sequence_step,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        row=Path(snakemake.output.row),
        weights=Path(snakemake.output.weights),
        checkpoint=Path(snakemake.params.checkpoint),
        model_name=snakemake.wildcards.model,
        order=snakemake.wildcards.order,
        run_name=snakemake.wildcards.run,
        seed=int(snakemake.wildcards.seed),
        step_settings=snakemake.params.step,
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe["group"],
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
