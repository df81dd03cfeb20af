from collections.abc import Mapping
from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.jobs.running import beside
from lethe.jobs.warm import run
from lethe.matrix import forgetting_matrix, rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.replay.runs import replay, without_replay


def replay_run(
    inputs: Mapping[str, str], run_file: Path, labels: dict, replay_settings: dict, **settings
) -> None:
    """Fine-tunes on one task with replay and measures the held-out examples."""
    upstream = read_upstream(inputs["upstream"])
    if inputs["measured"]:
        job, row = None, without_replay(rows.read(inputs["measured"]), upstream, labels["task"])
    else:
        job = fine_tune_job(inputs, **settings, unfinished=beside(run_file))
        scores = weighed(inputs["scores"], labels) if inputs["scores"] else None
        row = replay(job, upstream, scores, **labels, **replay_settings)
    if distributed.rank():
        return
    rows.write(run_file, row)
    if job is not None:
        job.finish()


def weighed(path: Path | str, labels: Mapping) -> dict[str, float]:
    """Forgetting by example_id that replay is drawn by: predicted, or by an oracle measured."""
    if labels["strategy"] != "oracle":
        return forgetting_matrix.read_task(path, labels["task"])
    row = rows.read(path)
    return dict(zip(row.example_ids, row.forgetting.tolist(), strict=True))


if __name__ == "__main__":
    settings = {"recipe": snakemake.params.recipe, "scoring": snakemake.params.scoring}
    settings |= {"threads": snakemake.threads, "gpu": snakemake.resources.gpu}
    settings["halvings"] = snakemake.resources.halvings
    settings |= {"replay_settings": snakemake.params.replay, "inputs": snakemake.input}
    wildcards = snakemake.wildcards
    labels = {"strategy": wildcards.strategy, "task": wildcards.task, "seed": int(wildcards.seed)}
    output = Path(snakemake.output.run)
    run(replay_run, snakemake.log[0], run_file=output, labels=labels, **settings)
