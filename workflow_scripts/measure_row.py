from collections.abc import Mapping
from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring, recipe_of
from lethe.data.examples import read_upstream
from lethe.engine import distributed
from lethe.files import sync_folder
from lethe.jobs.running import run
from lethe.matrix import rows
from lethe.matrix.gathering import with_identity
from lethe.matrix.prediction_files import write_prediction_file
from lethe.matrix.token_files import write_token_file
from lethe.measure.fine_tune_job import fine_tune_job


def measure_row(
    inputs: Mapping[str, str],
    row: Path,
    weights: Path | None,
    changes: Path | None,
    checkpoint: Path,
    token_file: Path,
    token_examples: int,
    model_name: str,
    task: str,
    recipe: Recipe,
    scoring: Scoring,
    group: str,
    halvings: int,
    threads: int,
    gpus: int,
) -> None:
    """Fine-tunes on one task and measures what every upstream example lost."""
    # Imported in the fork, which has torch already. At the top, the job itself would load it too.
    from lethe.measure.changed_predictions import measure_changed_predictions
    from lethe.measure.forgotten_tokens import measure_tokens

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
    upstream = read_upstream(inputs["upstream"])
    model, tokenizer, measured = job.run(upstream, title=task)
    if changes is not None:
        # All processes take part in the scoring.
        measures = measure_changed_predictions(
            job, model, tokenizer, upstream=upstream, row=measured, title=task
        )
    if distributed.rank():
        return
    # A file of an earlier row does not belong to this one.
    token_file.unlink(missing_ok=True)
    if weights is not None:
        model.save_pretrained(weights)
        tokenizer.save_pretrained(weights)
        sync_folder(weights)
    if changes is not None:
        write_prediction_file(changes, measured.example_ids, measures)
    rows.write_row(row, with_identity(measured, model=model_name, task=task))
    if token_examples:
        tokens = measure_tokens(
            job,
            model,
            tokenizer,
            upstream=upstream,
            row=measured,
            count=token_examples,
            title=task,
        )
        write_token_file(token_file, tokens)
    job.finish()


if __name__ == "__main__":
    weights = snakemake.output.get("weights")
    changes = snakemake.output.get("changes")
    run(
        measure_row,
        snakemake.log[0],
        warm_start=True,
        processes=snakemake.params.recipe["processes"],
        inputs=snakemake.input,
        row=Path(snakemake.output.row),
        weights=Path(weights) if weights else None,
        changes=Path(changes) if changes else None,
        checkpoint=Path(snakemake.params.checkpoint),
        token_file=Path(snakemake.params.tokens["file"]),
        token_examples=snakemake.params.tokens["examples"],
        model_name=snakemake.wildcards.model,
        task=snakemake.wildcards.task,
        recipe=recipe_of(snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        group=snakemake.params.recipe.get("group", ""),
        halvings=snakemake.resources.halvings,
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
