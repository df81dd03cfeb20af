"""Matrix factorisation by fold-in of the new row (protocol 2.2, step 4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import eigsh

from lethe.completion.foldin import (
    MANY_TASKS,
    FoldIn,
    Prior,
    Solver,
    centring,
    mean_row,
    offset_spread,
)
from lethe.matrix.moments import centre_gram

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

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank = rank
        self.ridge = ridge

    @property
    def default(self) -> tuple[int, float, bool]:
        """The setting where none can be chosen: what was given, else rank 1 and the residual."""
        rank = 1 if self.rank is None else self.rank
        ridge = 1.0 if self.ridge is None else self.ridge
        return rank, ridge, self.ridge is None

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
        inner = centre_gram(total[:-1, :-1]) / tasks
        rank = max(rank for rank, _, _ in self.candidates())
        squares, u = _strongest_directions(inner, rank)
        nonzero = squares > 1e-10 * max(squares[0], 1e-300)
        offset = np.append(np.zeros(tasks), offset_spread(total))
        complete = max(float(np.trace(inner)), 0.0)
        residual = np.maximum(complete - np.cumsum(squares), 0)
        # Rank 0 explains nothing; a floor keeps the ridge above rounding for exact low rank.
        floor = 1e-6 * max(complete, 1e-12)
        residual = np.maximum(np.concatenate([[complete], residual]), floor) / count
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


def _strongest_directions(inner: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and vectors of a Gram matrix (M, M), from large to small: at least `rank`.

    Many tasks have only a few useful factors, and all eigenvectors would take minutes.
    """
    tasks = len(inner)
    if tasks <= MANY_TASKS or rank >= tasks - 1:
        squares, u = np.linalg.eigh(inner)
    else:
        squares, u = eigsh(inner, k=rank, v0=np.linspace(1.0, 2.0, tasks))
    order = np.argsort(-squares, kind="stable")
    return np.maximum(squares[order], 0), u[:, order]
