from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.replay.replay_inputs import read_replay
from lethe.replay.runs import fine_tune_at_shares, without_replay


def replay_run(
    inputs: Mapping[str, str],
    run_file: Path,
    checkpoint: Path,
    task: str,
    seed: int,
    strategy: str,
    replay_settings: dict,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on one task with replay and measures the held-out examples, once per share."""
    upstream = read_upstream(inputs["upstream"])
    if inputs["measured"]:
        row = without_replay(rows.read_row(inputs["measured"]), upstream, task=task, name=strategy)
        if distributed.rank() == 0:
            rows.write_row(run_file, row)
        return
    run_settings, replay_inputs = read_replay(strategy, replay_settings, inputs, task)
    job = fine_tune_job(
        inputs,
        recipe=recipe,
        scoring=scoring,
        group=group,
        threads=threads,
        gpus=gpus,
        unfinished=checkpoint,
        halvings=halvings,
    )
    measured = fine_tune_at_shares(
        job,
        upstream,
        run_settings,
        task=task,
        seed=seed,
        inputs=replay_inputs,
    )
    if distributed.rank() == 0:
        if len(measured) == 1:
            rows.write_row(run_file, measured[0])
        else:
            rows.write_rows(run_file, measured)
        job.finish()


if __name__ == "__main__":
    run(
        replay_run,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        run_file=Path(snakemake.output.run),
        checkpoint=Path(snakemake.params.checkpoint),
        task=snakemake.wildcards.task,
        seed=int(snakemake.wildcards.seed),
        strategy=snakemake.wildcards.strategy,
        replay_settings=snakemake.params.replay,
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe.get("group", ""),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
