"""Matrix factorisation by fold-in of the new row (protocol 2.2, step 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lethe.completion.foldin import FoldIn, Prior, Solver, centring, mean_row, offset_spread

RANKS = (1, 2, 3, 5, 8, 12)
# Ridges relative to the mean square that rank-r factors leave of the training rows.
RELATIVE_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True)
class Factors:
    """Combinations of [Z; 1]: an offset, then factors from strong to weak (R + 1, M + 1).

    `residual` (R + 1,) is the mean square of the centred rows after the first r factors.
    """

    basis: np.ndarray
    residual: np.ndarray


class MatrixFactorisation(FoldIn):
    """Bias plus rank-r ridge regression of the probes onto factors of the training rows.

    Factors are the right singular vectors of the column-centred rows, scaled so that the
    training tasks' coordinates have unit variance. A row of ones, scaled by the spread of the
    training tasks' means, carries the new task's offset.

    Parameters
    ----------
    rank, ridge
        Rank, and ridge in nats^2; by default chosen by leave-one-task-out for each number of
        probes.
    """

    default = (1, 1.0, True)

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank = rank
        self.ridge = ridge

    def candidates(self) -> Sequence[tuple[int, float, bool]]:
        """(rank, ridge, whether the ridge is relative to the residual of the rank)."""
        ranks = RANKS if self.rank is None else (self.rank,)
        ridges = RELATIVE_RIDGES if self.ridge is None else (self.ridge,)
        relative = self.ridge is None
        return [(rank, ridge, relative) for rank in ranks for ridge in ridges]

    def parts(self, total: np.ndarray) -> Factors:
        """Factors of the training rows, from their Gram matrix."""
        tasks = len(total) - 1
        count = total[-1, -1]
        centred = centring(tasks)
        squares, u = np.linalg.eigh(centred @ total @ centred.T)
        squares = np.maximum(squares[::-1], 0)
        u = u[:, ::-1]
        nonzero = squares > 1e-10 * max(squares[0], 1e-300)
        offset = np.append(np.zeros(tasks), offset_spread(total))
        residual = np.maximum(squares.sum() - np.cumsum(squares), 0)
        # Rank 0 explains nothing; a floor keeps the ridge above rounding for exact low rank.
        floor = 1e-6 * max(squares.sum(), 1e-12)
        residual = np.maximum(np.concatenate([[squares.sum()], residual]), floor) / count
        return Factors(basis=np.vstack([offset, u[:, nonzero].T @ centred]), residual=residual)

    def weights(self, parts, probed, values, candidates) -> np.ndarray:
        """Ridge regression for every rank, each with its ridges."""
        mean = mean_row(len(probed) - 1)
        weights = []
        for rank in dict.fromkeys(rank for rank, _, _ in candidates):
            usable = min(rank, len(parts.basis) - 1)
            ridges = []
            for candidate_rank, ridge, relative in candidates:
                if candidate_rank == rank:
                    ridges.append(ridge * parts.residual[usable] if relative else ridge)
            prior = Prior(mean=mean, basis=parts.basis[: usable + 1])
            solver = Solver(prior, probed, noise=np.ones(probed.shape[1]))
            weights.append(solver.weights(values, ridges))
        return np.concatenate(weights)
