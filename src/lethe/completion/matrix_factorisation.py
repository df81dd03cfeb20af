"""Matrix factorisation by fold-in of the new row (protocol 2.2, step 4)."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.base import Completer
from lethe.completion.biases import fill
from lethe.completion.tuning import Folds

RANKS = (1, 2, 3, 5, 8, 12)
# Ridges relative to the mean square of what rank-r factors leave of the training rows.
RELATIVE_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class MatrixFactorisation(Completer):
    """Bias plus rank-r ridge regression of the probes onto factors of the training rows.

    Factors are the right singular vectors of the column-centred rows, scaled so that the
    training tasks' coordinates have unit variance; a row of ones, scaled by the spread of the
    training tasks' means, carries the new task's offset. Rank and ridge (nats^2) are chosen by
    leave-one-task-out for each number of probes unless given.
    """

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank, self.ridge = rank, ridge

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.basis = Basis(fill(values, known))
        self._folds = Folds(values, known)
        self._chosen: dict[int, tuple[int, float, bool]] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self.basis.complete(index, values, [self.choice(len(index))])[0]

    def choice(self, probes: int) -> tuple[int, float, bool]:
        """(rank, ridge, whether the ridge is relative) used for this number of probes."""
        if probes not in self._chosen:
            ranks = [self.rank] if self.rank is not None else RANKS
            ridges = [self.ridge] if self.ridge is not None else RELATIVE_RIDGES
            grid = [(rank, ridge, self.ridge is None) for rank in ranks for ridge in ridges]
            default = (ranks[0], ridges[len(ridges) // 2], self.ridge is None)
            self._chosen[probes] = (
                grid[0] if len(grid) == 1 else self._folds.choose(probes, grid, _left_out, default)
            )
        return self._chosen[probes]


def _left_out(train, row, probes, candidates):
    return Basis(train).complete(probes, row[probes], candidates)


class Basis:
    """Column means (N,), factors (N, R) from strong to weak, and what each rank leaves over."""

    def __init__(self, rows: np.ndarray):
        self.means = rows.mean(axis=0)
        centred = rows - self.means
        # The (M, M) Gram matrix has all there is to know about M rows, at any N.
        eigenvalues, u = np.linalg.eigh(centred @ centred.T)
        order = np.argsort(-eigenvalues)
        squares = np.maximum(eigenvalues[order], 0)
        kept = squares > 1e-10 * max(squares[0], 1e-300)
        self.factors = (centred.T @ u[:, order[kept]]) / np.sqrt(len(rows))
        self.offset = max(float(rows.mean(axis=1).std()), 1e-6)
        left = np.maximum(squares.sum() - np.cumsum(squares), 0)
        # Rank 0 leaves everything; a floor keeps the ridge above rounding for exact low rank.
        floor = 1e-6 * max(squares.sum(), 1e-12)
        self.left = np.maximum(np.concatenate([[squares.sum()], left]), floor) / rows.size

    def complete(
        self, index: np.ndarray, values: np.ndarray, candidates: Sequence[tuple[int, float, bool]]
    ) -> list[np.ndarray]:
        """A prediction (N,) for each (rank, ridge, relative)."""
        target = values - self.means[index]
        done = []
        for rank, ridge, relative in candidates:
            rank = min(rank, self.factors.shape[1])
            features = self._features(rank)
            probed = features[index]
            penalty = ridge * self.left[rank] if relative else ridge
            gram = probed.T @ probed + penalty * np.eye(rank + 1)
            done.append(self.means + features @ np.linalg.solve(gram, probed.T @ target))
        return done

    def _features(self, rank: int) -> np.ndarray:
        ones = np.full((len(self.means), 1), self.offset)
        return np.hstack([ones, self.factors[:, :rank]])
