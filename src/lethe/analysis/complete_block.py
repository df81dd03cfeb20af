"""Finds tasks that share many measured examples, if no example was measured for every task."""

from collections.abc import Iterable

import numpy as np


def complete_tasks(chunks: Iterable[np.ndarray]) -> np.ndarray:
    """Row numbers of tasks whose complete columns hold many cells, from chunks (M, n) of Z.

    Tasks are left out one after another. Each time it is the task that most keeps columns from
    being complete: a column with u unknown cells counts 1 / u^2 for each of their tasks. Of all
    sets of at least two tasks on this path, the one with the most cells in complete columns is
    returned. This is greedy, so a larger block may exist.

    Returns
    -------
    Sorted row numbers; empty if no two tasks on the path share two measured columns.
    """
    unknown, counts = _patterns(chunks)
    tasks = np.arange(unknown.shape[1])
    best = tasks[:0]
    most_cells = 0
    while len(tasks) >= 2:
        sizes = unknown[:, tasks].sum(axis=1)
        columns = int(counts[sizes == 0].sum())
        if columns >= 2 and columns * len(tasks) > most_cells:
            most_cells = columns * len(tasks)
            best = tasks
        weights = counts / np.square(np.maximum(sizes, 1))
        blocking = weights @ unknown[:, tasks]
        tasks = np.delete(tasks, int(np.argmax(blocking)))
    return best


def _patterns(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The different patterns (P, M) of unknown cells in columns, and how often each occurs (P,)."""
    counts_by_pattern: dict[bytes, int] = {}
    tasks = 0
    for chunk in chunks:
        tasks = len(chunk)
        packed = np.packbits(~np.isfinite(chunk).T, axis=1)
        patterns, counts = np.unique(packed, axis=0, return_counts=True)
        for pattern, count in zip(patterns, counts.tolist(), strict=True):
            key = pattern.tobytes()
            counts_by_pattern[key] = counts_by_pattern.get(key, 0) + count
    keys = np.frombuffer(b"".join(counts_by_pattern), dtype=np.uint8)
    packed = keys.reshape(len(counts_by_pattern), -1)
    unknown = np.unpackbits(packed, axis=1, count=tasks).astype(bool)
    return unknown, np.array(list(counts_by_pattern.values()), dtype=np.float64)
