"""The rank curve of a Z on disk, read one chunk of examples at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lethe.analysis import low_rank
from lethe.analysis.complete_block import complete_tasks
from lethe.completion.logistic import logistic_f1_by_rank
from lethe.errors import LetheError
from lethe.matrix.moments import compute_moments
from lethe.matrix.streams import Stream

# Cells of the largest binary Z that factors are fitted to; more would take hours and gigabytes.
LARGEST_BINARY = 20_000_000
RANKS = range(1, 12)


def streamed_rank_curve(path: Path | str, max_rank: int | None = None) -> low_rank.RankCurve:
    """`lethe.analysis.low_rank.rank_curve` of a Z on disk, in one pass.

    If no example was measured for every task, the curve is that of the tasks that share the most
    measured examples (`lethe.analysis.complete_block`), and names the others.

    Raises
    ------
    LetheError
        Naming the file, if it is not a Z, has no variation, or no two tasks share two measured
        examples.
    """
    stream = Stream(path)
    moments = compute_moments(stream)
    dropped_tasks = []
    if not moments.count:
        rows = complete_tasks(stream)
        if not len(rows):
            raise LetheError(
                f"{path}: no two of its {len(stream.tasks)} tasks share two measured examples, so "
                "there is no rank to estimate; measure the same examples for several tasks"
            )
        tasks = [stream.tasks[row] for row in rows]
        dropped_tasks = [task for task in stream.tasks if task not in tasks]
        moments = compute_moments(Stream(path, tasks))
    try:
        curve = low_rank.curve_of_moments(moments, max_rank)
    except ValueError as error:
        raise LetheError(f"{path}: {error}")
    return replace(curve, dropped_tasks=dropped_tasks)


def streamed_f1_by_rank(path: Path | str) -> dict[int, float]:
    """In-sample F1 by rank of a Z of 0s and 1s; empty for any other Z.

    It is also empty for a Z that is too large, or without any complete column. Ranks are 1 to 11,
    as in the paper, but at most the number of tasks.
    """
    stream = Stream(path)
    if len(stream.tasks) * stream.examples > LARGEST_BINARY:
        return {}
    chunks = []
    for chunk in stream:
        finite = chunk[np.isfinite(chunk)]
        if not np.isin(finite, (0, 1)).all():
            return {}
        chunks.append(chunk)
    values = np.hstack(chunks)
    if not np.isfinite(values).all(axis=0).any():
        return {}
    ranks = [rank for rank in RANKS if rank <= len(stream.tasks)]
    scores = logistic_f1_by_rank(values, ranks)
    return dict(zip(ranks, scores, strict=True))
