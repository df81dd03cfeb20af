from pathlib import Path

from lethe.config.similarity_settings import TwoTower
from lethe.config.task_table import Task, tasks_from_pairs
from lethe.engine import models
from lethe.jobs.running import run
from lethe.matrix import forgetting_matrix
from lethe.similarity import embeddings, two_tower
from lethe.similarity.association_files import align_values


def train_two_tower(
    z: Path,
    vectors: Path,
    association: Path,
    tasks: dict[str, Task],
    settings: TwoTower,
    threads: int,
) -> None:
    """Predicts every task's forgetting by two networks that have not seen its row of Z."""
    models.use_machine(threads, 0)
    embedded = embeddings.read_embeddings(vectors)
    values = align_values(
        forgetting_matrix.read_matrix(z), embedded.tasks, embedded.example_ids, path=z
    )
    train = [row for row, task in enumerate(embedded.tasks) if tasks[task].split == "train"]
    predicted = two_tower.predict_unseen(embedded, values, train=train, settings=settings)
    forgetting_matrix.write_matrix(association, predicted)


if __name__ == "__main__":
    run(
        train_two_tower,
        snakemake.log[0],
        z=Path(snakemake.input.matrix),
        vectors=Path(snakemake.input.embeddings),
        association=Path(snakemake.output.association),
        tasks=tasks_from_pairs(snakemake.params.tasks),
        settings=TwoTower(**snakemake.params.two_tower),
        threads=snakemake.threads,
    )
