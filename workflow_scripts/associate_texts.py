from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.data.packages import Package
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings, texts
from lethe.similarity.association_files import read_task_examples


def associate_texts(
    train_files: dict[str, str],
    upstream: Path,
    encoder: str | None,
    encoder_package: Package | None,
    outputs: dict[str, str],
    settings: dict,
    threads: int,
) -> None:
    """Associates tasks and upstream examples by their texts alone."""
    tasks = read_task_examples(train_files, settings["task_examples"])
    examples = read_upstream(upstream)
    if "text_tfidf" in outputs:
        forgetting_matrix.write_matrix(outputs["text_tfidf"], texts.tfidf(tasks, examples))
    if "text_encoder" in outputs:
        # Imported here, because torch takes seconds and TF-IDF does without it.
        from lethe.engine import models
        from lethe.similarity.encoder import cached_encoder, embed

        if encoder_package is not None:
            cached_encoder(encoder_package, Path(encoder))

        models.use_machine(threads, 0)
        embedded = embed(
            tasks,
            examples,
            path=encoder or settings["encoder"]["path"],
            revision=settings["encoder"].get("revision"),
            max_tokens=settings["encoder_tokens"],
        )
        forgetting_matrix.write_matrix(outputs["text_encoder"], embedded.cosines())
        embeddings.write_embeddings(Path(outputs["embeddings"]), embedded)


if __name__ == "__main__":
    run(
        associate_texts,
        snakemake.log[0],
        train_files=dict(zip(snakemake.params.tasks, snakemake.input.train, strict=True)),
        upstream=Path(snakemake.input.upstream),
        encoder=snakemake.params.encoder,
        encoder_package=snakemake.params.encoder_package,
        outputs=dict(snakemake.output.items()),
        settings=snakemake.params.similarity,
        threads=snakemake.threads,
    )
