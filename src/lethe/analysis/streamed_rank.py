"""The rank curve of a Z on disk, read one chunk of examples at a time."""

from pathlib import Path

import numpy as np

from lethe.analysis import low_rank
from lethe.completion.logistic import logistic_f1_by_rank
from lethe.errors import LetheError
from lethe.matrix.moments import compute_moments
from lethe.matrix.streams import Stream

# Cells of the largest binary Z that factors are fitted to; more would take hours and gigabytes.
LARGEST_BINARY = 20_000_000
RANKS = range(1, 12)


def streamed_rank_curve(path: Path | str, max_rank: int | None = None) -> low_rank.RankCurve:
    """`lethe.analysis.low_rank.rank_curve` of a Z on disk, in one pass.

    Raises
    ------
    LetheError
        Naming the file, if it is not a Z or has no variation.
    """
    try:
        return low_rank.curve_of_moments(compute_moments(Stream(path)), max_rank)
    except ValueError as error:
        raise LetheError(f"{path}: {error}")


def streamed_f1_by_rank(path: Path | str) -> dict[int, float]:
    """In-sample F1 by rank of a Z of 0s and 1s; empty for any other Z, or one too large.

    Ranks are 1 to 11, as in the paper, but at most the number of tasks.
    """
    stream = Stream(path)
    if len(stream.tasks) * stream.examples > LARGEST_BINARY:
        return {}
    chunks = []
    for chunk in stream:
        known = chunk[np.isfinite(chunk)]
        if not np.isin(known, (0, 1)).all():
            return {}
        chunks.append(chunk)
    ranks = [rank for rank in RANKS if rank <= len(stream.tasks)]
    scores = logistic_f1_by_rank(np.hstack(chunks), ranks)
    return dict(zip(ranks, scores, strict=True))
