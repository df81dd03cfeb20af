from pathlib import Path

from lethe.config.similarity_settings import TwoTower
from lethe.config.task_table import tasks_from_pairs
from lethe.engine import models
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings, two_tower
from lethe.similarity.association_files import align_values


def train_two_tower(
    z: Path, vectors: Path, association: Path, tasks: dict, settings: dict, threads: int
) -> None:
    """Predicts every task's forgetting by two networks that have not seen its row of Z."""
    models.use_machine(threads, 0)
    known = embeddings.read_embeddings(vectors)
    values = align_values(forgetting_matrix.read(z), known.tasks, known.example_ids, path=z)
    table = tasks_from_pairs(tasks)
    train = [row for row, task in enumerate(known.tasks) if table[task].split == "train"]
    predicted = two_tower.predict_unseen(known, values, train=train, settings=TwoTower(**settings))
    forgetting_matrix.write(association, predicted)


if __name__ == "__main__":
    params = snakemake.params
    paths = {"z": Path(snakemake.input.matrix), "vectors": Path(snakemake.input.embeddings)}
    paths["association"] = Path(snakemake.output.association)
    settings = {"tasks": params.tasks, "settings": params.two_tower, "threads": snakemake.threads}
    run(train_two_tower, snakemake.log[0], **paths, **settings)
