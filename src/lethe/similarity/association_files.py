"""Reads the examples of tasks, and associations in the order of a Z."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lethe.data.examples import Example, read_examples
from lethe.errors import LetheError
from lethe.matrix import forgetting_matrix
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity.embeddings import read_embeddings


def read_task_examples(files: Mapping[str, Path | str], count: int) -> dict[str, list[Example]]:
    """Reads the first `count` training examples of each task from its file."""
    return {task: read_examples(path)[:count] for task, path in files.items()}


def read_associations(files: Mapping[str, Path | str], z: Matrix) -> dict[str, np.ndarray]:
    """Reads associations (M, N) by name, in the row and column order of Z.

    Values are returned as they are on disk. `gradient` is the plain inner product, which has the
    opposite sign of forgetting: a predictor that fits a slope does not mind, and one that orders
    examples takes the negative.

    Raises
    ------
    LetheError
        If a file lacks a task or example of Z. The message names the file.
    """
    associations = {}
    for name, path in files.items():
        matrix = forgetting_matrix.read_matrix(path)
        associations[name] = align_values(matrix, z.tasks, z.example_ids, path=path)
    return associations


def read_example_vectors(path: Path | str, z: Matrix) -> np.ndarray:
    """Reads the embeddings (N, D) of the upstream examples, in the column order of Z.

    Raises
    ------
    LetheError
        If the file lacks an example of Z. The message names the file.
    """
    embeddings = read_embeddings(path)
    rows = _positions(embeddings.example_ids, z.example_ids, kind="example", path=path)
    return embeddings.example_vectors[rows]


def align_values(
    matrix: Matrix, tasks: list[str], example_ids: list[str], *, path: Path | str
) -> np.ndarray:
    """Selects the values (M, N) of these tasks and examples, in this order.

    Parameters
    ----------
    matrix
        May hold more tasks and examples than requested.
    path
        File of the matrix, for the error message.

    Raises
    ------
    LetheError
        If a task or example is not in the matrix. The message names the file.
    """
    rows = _positions(matrix.tasks, tasks, kind="task", path=path)
    columns = _positions(matrix.example_ids, example_ids, kind="example", path=path)
    return matrix.values[np.ix_(rows, columns)]


def _positions(names: list[str], request: list[str], *, kind: str, path: Path | str) -> list[int]:
    position = {name: i for i, name in enumerate(names)}
    missing = [name for name in request if name not in position]
    if missing:
        raise LetheError(
            f"{path}: {len(missing)} {kind}(s) of Z are missing, such as {missing[0]!r}; the file "
            f"belongs to another experiment. Make it again: snakemake --force {path}"
        )
    return [position[name] for name in request]
