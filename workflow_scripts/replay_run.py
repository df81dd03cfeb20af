from collections.abc import Mapping
from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix, rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.replay.runs import replay, without_replay


def replay_run(
    inputs: Mapping[str, str],
    run_file: Path,
    checkpoint: Path,
    strategy: str,
    task: str,
    seed: int,
    replay_settings: dict,
    recipe: dict,
    scoring: dict,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on one task with replay and measures the held-out examples."""
    upstream = read_upstream(inputs["upstream"])
    if inputs["measured"]:
        row = without_replay(rows.read_row(inputs["measured"]), upstream, task)
        if distributed.rank() == 0:
            rows.write_row(run_file, row)
        return
    job = fine_tune_job(
        inputs,
        recipe=recipe,
        scoring=scoring,
        threads=threads,
        gpus=gpus,
        unfinished=checkpoint,
        halvings=halvings,
    )
    row = replay(
        job,
        upstream,
        read_scores(inputs["scores"], strategy, task),
        strategy=strategy,
        task=task,
        seed=seed,
        **replay_settings,
    )
    if distributed.rank() == 0:
        rows.write_row(run_file, row)
        job.finish()


def read_scores(path: str | None, strategy: str, task: str) -> dict[str, float] | None:
    """Forgetting by example id that a strategy draws by: measured for the oracle, or predicted."""
    if not path:
        return None
    if strategy != "oracle":
        return forgetting_matrix.read_matrix_row(path, task)
    row = rows.read_row(path)
    return dict(zip(row.example_ids, row.forgetting.tolist(), strict=True))


if __name__ == "__main__":
    run(
        replay_run,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        run_file=Path(snakemake.output.run),
        checkpoint=Path(snakemake.params.checkpoint),
        strategy=snakemake.wildcards.strategy,
        task=snakemake.wildcards.task,
        seed=int(snakemake.wildcards.seed),
        replay_settings=snakemake.params.replay,
        recipe=snakemake.params.recipe,
        scoring=snakemake.params.scoring,
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
