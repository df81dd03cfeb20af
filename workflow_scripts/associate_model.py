from pathlib import Path

from lethe.config.model_settings import Recipe, Scoring
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings
from lethe.similarity.model_associations import first_order, read_model_examples
from lethe.similarity.projection import sketch_of


def associate_model(
    card: Path,
    upstream: Path,
    train_files: dict[str, str],
    direction_files: dict[str, Path],
    outputs: dict[str, str],
    similarity: dict,
    recipe: Recipe,
    scoring: Scoring,
    threads: int,
    gpus: int,
) -> None:
    """Associates tasks and upstream examples by representations and gradients of a base model."""
    examples = read_model_examples(
        card,
        upstream,
        train_files,
        count=similarity["task_examples"],
        recipe=recipe,
        scoring=scoring,
        threads=threads,
        gpus=gpus,
    )
    if "representation" in outputs:
        representations = examples.representations()
        forgetting_matrix.write_matrix(outputs["representation"], representations.cosines())
        embeddings.write_embeddings(Path(outputs["embeddings"]), representations)
    associations = first_order(
        examples,
        list(outputs),
        direction_files=direction_files,
        sketch=sketch_of(examples.model, **similarity["projection"]),
    )
    for name, association in associations.items():
        forgetting_matrix.write_matrix(outputs[name], association)


if __name__ == "__main__":
    # Without weight_difference there are no directions.
    directions = [Path(path) for path in snakemake.input.directions]
    run(
        associate_model,
        snakemake.log[0],
        card=Path(snakemake.input.card),
        upstream=Path(snakemake.input.upstream),
        train_files=dict(zip(snakemake.params.tasks, snakemake.input.train, strict=True)),
        direction_files=dict(zip(snakemake.params.tasks, directions, strict=False)),
        outputs=dict(snakemake.output.items()),
        similarity=snakemake.params.similarity,
        recipe=Recipe(**snakemake.params.recipe),
        scoring=Scoring(**snakemake.params.scoring),
        threads=snakemake.threads,
        gpus=snakemake.resources.gpu,
    )
