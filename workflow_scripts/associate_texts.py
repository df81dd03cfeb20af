from collections.abc import Mapping
from pathlib import Path

from lethe.data.examples import read_upstream
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings, texts
from lethe.similarity.association_files import read_task_examples


def associate_texts(inputs: Mapping, files: dict[str, Path], settings: dict, threads: int) -> None:
    """Associates tasks and upstream examples by their texts alone."""
    tasks = read_task_examples(inputs["train"], settings["task_examples"])
    upstream = read_upstream(Path(inputs["upstream"]))
    if "text_tfidf" in files:
        forgetting_matrix.write(files["text_tfidf"], texts.tfidf(tasks, upstream))
    if "text_encoder" in files:
        # Imported here: torch takes seconds that TF-IDF need not wait for.
        from lethe.engine import models
        from lethe.similarity.encoder import embed

        models.use_machine(threads, 0)
        there = [str(Path(path).parent) for path in inputs["encoder"]]
        path = there[0] if there else settings["encoder"]["path"]
        found = embed(
            tasks,
            upstream,
            path=path,
            revision=settings["encoder"].get("revision"),
            max_tokens=settings["encoder_tokens"],
        )
        forgetting_matrix.write(files["text_encoder"], found.cosines())
        embeddings.write_embeddings(files["embeddings"], found)


if __name__ == "__main__":
    files = {name: Path(path) for name, path in snakemake.output.items()}
    given = {"inputs": snakemake.input, "settings": snakemake.params.similarity}
    given["threads"] = snakemake.threads
    run(associate_texts, snakemake.log[0], files=files, **given)
