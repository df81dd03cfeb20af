from collections.abc import Mapping
from pathlib import Path

from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings
from lethe.similarity.model_associations import first_order, read_model_examples
from lethe.similarity.projection import sketch_of


def associate_model(inputs: Mapping, files: dict[str, Path], similarity: dict, **settings) -> None:
    """Associates tasks and upstream examples by what a base model makes of them."""
    examples = read_model_examples(inputs, similarity["task_examples"], **settings)
    if "representation" in files:
        found = examples.representations()
        forgetting_matrix.write(files["representation"], found.cosines())
        embeddings.write_embeddings(files["embeddings"], found)
    sketch = sketch_of(examples.model, **similarity["projection"])
    moved = {Path(path).stem: Path(path) for path in inputs["directions"]}
    associations = first_order(examples, list(files), direction_files=moved, sketch=sketch)
    for name, association in associations.items():
        forgetting_matrix.write(files[name], association)


if __name__ == "__main__":
    params = snakemake.params
    files = {name: Path(path) for name, path in snakemake.output.items()}
    settings = {"recipe": params.recipe, "scoring": params.scoring, "threads": snakemake.threads}
    settings |= {"similarity": params.similarity, "gpu": snakemake.resources.gpu}
    run(associate_model, snakemake.log[0], inputs=snakemake.input, files=files, **settings)
