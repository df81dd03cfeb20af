"""Vectors of tasks and upstream examples, their file, and their cosine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.data.examples import UpstreamExample, ids_of
from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.matrix.forgetting_matrix import Matrix

_TASK = "task"
_EXAMPLE = "example"


@dataclass(frozen=True)
class Embeddings:
    """`task_vectors` (M, D) and `example_vectors` (N, D), with the names of both."""

    task_vectors: np.ndarray
    example_vectors: np.ndarray
    tasks: list[str]
    example_ids: list[str]

    def cosines(self) -> Matrix:
        """Cosine (M, N) of every task and example; NaN for a vector of zeros or NaN."""
        cosines = _unit_length(self.task_vectors) @ _unit_length(self.example_vectors).T
        return Matrix(cosines.astype(np.float32), self.tasks, self.example_ids)


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def average_by_task(
    tasks: Mapping[str, np.ndarray],
    upstream_vectors: np.ndarray,
    upstream: Sequence[UpstreamExample],
) -> Embeddings:
    """Joins the mean vector of each task's examples (n, D) with the upstream vectors (N, D).

    Examples without a vector (NaN) are left out of their task's mean.
    """
    means = np.stack([np.nanmean(vectors, axis=0) for vectors in tasks.values()])
    return Embeddings(
        task_vectors=means,
        example_vectors=upstream_vectors,
        tasks=list(tasks),
        example_ids=ids_of(upstream),
    )


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Yields batches of indices of sequences of similar length, longest first.

    A batch holds at most `tokens_per_batch` padded tokens, but always at least one sequence. Empty
    sequences are left out.
    """
    token_counts = np.asarray(lengths, dtype=int)
    order = np.argsort(-token_counts, kind="stable").tolist()
    order = order[: np.count_nonzero(token_counts)]
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def write_embeddings(path: Path | str, embeddings: Embeddings) -> None:
    """Writes one line per vector: kind (task or example), name, vector."""
    vectors = np.concatenate([embeddings.task_vectors, embeddings.example_vectors])
    flat = pa.array(vectors.astype(np.float32).ravel())
    columns = {
        "kind": [_TASK] * len(embeddings.tasks) + [_EXAMPLE] * len(embeddings.example_ids),
        "name": embeddings.tasks + embeddings.example_ids,
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns), part)


def read_embeddings(path: Path | str) -> Embeddings:
    """Reads a file of `write_embeddings`.

    Raises
    ------
    LetheError
        If the file does not hold embeddings. The message names the file.
    """
    try:
        table = pq.read_table(path)
        kinds = table["kind"].to_pylist()
        names = table["name"].to_pylist()
        vectors = np.stack(table["vector"].to_numpy())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise LetheError(
            f"{path}: not readable embeddings ({error}). Make them again: snakemake --force {path}"
        )
    tasks = kinds.count(_TASK)
    return Embeddings(
        task_vectors=vectors[:tasks],
        example_vectors=vectors[tasks:],
        tasks=names[:tasks],
        example_ids=names[tasks:],
    )
