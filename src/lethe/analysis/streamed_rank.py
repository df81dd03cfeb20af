"""The rank curve of a Z on disk, read a chunk of examples at a time."""

from pathlib import Path

import numpy as np

from lethe.analysis import low_rank
from lethe.completion.logistic import f1_by_rank as logistic_f1
from lethe.errors import LetheError
from lethe.matrix.moments import moments
from lethe.matrix.streams import Stream

# Cells of a binary Z whose factors are fitted; a larger one would take hours and gigabytes.
LARGEST_BINARY = 20_000_000
RANKS = range(1, 12)


def rank_curve(path: Path | str, max_rank: int | None = None) -> low_rank.RankCurve:
    """`lethe.analysis.low_rank.rank_curve` of a Z on disk, in one pass.

    Raises
    ------
    LetheError
        Naming the file, if it is no Z or has no variation.
    """
    try:
        return low_rank.curve(moments(Stream(path)), max_rank)
    except ValueError as error:
        raise LetheError(f"{path}: {error}")


def f1_by_rank(path: Path | str) -> dict[int, float]:
    """Rank -> in-sample F1 of a Z of 0s and 1s; empty of any other Z, or of one too large.

    Ranks 1 to 11, as in the paper, as far as there are tasks.
    """
    stream, chunks = Stream(path), []
    if len(stream.tasks) * stream.examples > LARGEST_BINARY:
        return {}
    for chunk in stream:
        known = chunk[np.isfinite(chunk)]
        if not np.isin(known, (0, 1)).all():
            return {}
        chunks.append(chunk)
    ranks = [rank for rank in RANKS if rank <= len(stream.tasks)]
    return dict(zip(ranks, logistic_f1(np.hstack(chunks), ranks), strict=True))
