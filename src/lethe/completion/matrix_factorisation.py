"""Matrix factorisation by fold-in of the new row (protocol 2.2, step 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lethe.completion.foldin import FoldIn, Prior, Solver, centring, mean_row, offset_spread

RANKS = (1, 2, 3, 5, 8, 12)
# Ridges relative to the mean square of what rank-r factors leave of the training rows.
RELATIVE_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Factors:
    """Combinations of [Z; 1]: an offset, then factors from strong to weak (R + 1, M + 1).

    `left` (R + 1,) is the mean square that the first r factors leave of the centred rows.
    """

    basis: np.ndarray
    left: np.ndarray


class MatrixFactorisation(FoldIn):
    """Bias plus rank-r ridge regression of the probes onto factors of the training rows.

    Factors are the right singular vectors of the column-centred rows, scaled so that the
    training tasks' coordinates have unit variance; a row of ones, scaled by the spread of the
    training tasks' means, carries the new task's offset. Rank and ridge (nats^2) are chosen by
    leave-one-task-out for each number of probes unless given.
    """

    default = (1, 1.0, True)

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank, self.ridge = rank, ridge

    def candidates(self) -> Sequence[tuple[int, float, bool]]:
        """(rank, ridge, whether the ridge is relative to what the rank leaves)."""
        ranks = RANKS if self.rank is None else (self.rank,)
        ridges = RELATIVE_RIDGES if self.ridge is None else (self.ridge,)
        return [(rank, ridge, self.ridge is None) for rank in ranks for ridge in ridges]

    def parts(self, total: np.ndarray) -> Factors:
        """Factors through the Gram matrix, which has all there is to know about M rows."""
        tasks, count = len(total) - 1, total[-1, -1]
        centred = centring(tasks)
        squares, u = np.linalg.eigh(centred @ total @ centred.T)
        squares, u = np.maximum(squares[::-1], 0), u[:, ::-1]
        kept = squares > 1e-10 * max(squares[0], 1e-300)
        offset = np.append(np.zeros(tasks), offset_spread(total))
        left = np.maximum(squares.sum() - np.cumsum(squares), 0)
        # Rank 0 leaves everything; a floor keeps the ridge above rounding for exact low rank.
        floor = 1e-6 * max(squares.sum(), 1e-12)
        left = np.maximum(np.concatenate([[squares.sum()], left]), floor) / count
        return Factors(np.vstack([offset, u[:, kept].T @ centred]), left)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Ridge regression for every rank, each with its ridges."""
        weights = []
        for rank in dict.fromkeys(rank for rank, _, _ in candidates):
            used = min(rank, len(parts.basis) - 1)
            prior = Prior(mean_row(len(probed) - 1), parts.basis[: used + 1])
            ridges = [
                ridge * parts.left[used] if relative else ridge
                for own, ridge, relative in candidates
                if own == rank
            ]
            solver = Solver(prior, probed, np.ones(probed.shape[1]))
            weights.append(solver.weights(values, ridges))
        return np.concatenate(weights)
