"""Vectors of tasks and upstream examples, their file, and their cosine."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError
from lethe.files import whole
from lethe.matrix.forgetting_matrix import Matrix

_TASK, _EXAMPLE = "task", "example"


@dataclass(frozen=True)
class Embeddings:
    """`task_vectors` (M, D) and `example_vectors` (N, D), with what each is of."""

    task_vectors: np.ndarray
    example_vectors: np.ndarray
    tasks: list[str]
    example_ids: list[str]

    def cosines(self) -> Matrix:
        """Cosine (M, N) of every task and example; a vector of zeros or NaN has none: NaN."""
        with np.errstate(invalid="ignore", divide="ignore"):
            tasks, examples = (
                vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
                for vectors in (self.task_vectors, self.example_vectors)
            )
        return Matrix((tasks @ examples.T).astype(np.float32), self.tasks, self.example_ids)


def gather(
    tasks: Mapping[str, np.ndarray], of_upstream: np.ndarray, upstream: Sequence[UpstreamExample]
) -> Embeddings:
    """Joins vectors (n, D) of each task's examples, as their mean, and of upstream (N, D).

    Examples without a vector (NaN) are left out of their task's mean.
    """
    means = np.stack([np.nanmean(vectors, axis=0) for vectors in tasks.values()])
    return Embeddings(means, of_upstream, list(tasks), [e.example_id for e in upstream])


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places of sequences of like length, longest first, at most so many padded tokens a batch.

    Empty sequences are left out.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def write(path: Path | str, embeddings: Embeddings) -> None:
    """Writes a line a vector: kind (task or example), name, vector; whole or not at all."""
    vectors = np.concatenate([embeddings.task_vectors, embeddings.example_vectors])
    flat = pa.array(vectors.astype(np.float32).ravel())
    columns = {
        "kind": [_TASK] * len(embeddings.tasks) + [_EXAMPLE] * len(embeddings.example_ids),
        "name": embeddings.tasks + embeddings.example_ids,
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    with whole(path) as part:
        pq.write_table(pa.table(columns), part)


def read(path: Path | str) -> Embeddings:
    """Reads what `write` wrote; raises LetheError naming a file that is none."""
    try:
        table = pq.read_table(path)
        kinds, names = table["kind"].to_pylist(), table["name"].to_pylist()
        vectors = np.stack(table["vector"].to_numpy())
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise LetheError(f"{path}: not readable embeddings ({error}); delete it and run again")
    split = kinds.count(_TASK)
    return Embeddings(vectors[:split], vectors[split:], names[:split], names[split:])
