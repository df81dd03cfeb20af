"""Soft-impute: the matrix of least nuclear norm that fits the known cells (Mazumder et al. 2010).

Written here in NumPy: no maintained library has it (fancyimpute's last release is of 2021).
"""

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.completer import Completer
from lethe.completion.foldin import sample

# Shrinkage of singular values, relative to the largest of the training rows, from strong to weak.
SHRINKAGES = (0.4, 0.2, 0.1, 0.05, 0.02)


class SoftImpute(Completer):
    """Iterated soft-thresholded SVD of the training rows with the new row's probes below them.

    Column means of the training rows and the new row's mean residual are taken off first. The
    shrinkage, relative to the largest singular value, is chosen by leave-one-task-out for each
    number of probes unless given, and reached by a path from strong to weak. Every iteration is
    a whole SVD of M + 1 rows, through their Gram matrix.
    """

    def __init__(
        self, shrinkage: float | None = None, iterations: int = 100, tolerance: float = 1e-4
    ):
        self.shrinkage, self.iterations, self.tolerance = shrinkage, iterations, tolerance

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        self.rows, self.seen = fill(values, known), known.any(axis=0)
        self._chosen: dict[int, float] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        chosen = self._tuned(len(index))
        path = [value for value in SHRINKAGES if value > chosen] + [chosen]
        # Columns that nobody knows are filled in, and would count as what rows agree on.
        used = self.seen.copy()
        used[index] = True
        places = np.flatnonzero(used).searchsorted(index)
        means = self.rows.mean(axis=0)
        offsets = (values - means[index]).sum(axis=1) / max(len(index), 1)
        found = means + offsets[:, None]
        for line, row in zip(found, values, strict=True):
            line[used] = self._complete(self.rows[:, used], places, row, path)[-1]
        return found

    def _tuned(self, probes: int, columns: int = 300) -> float:
        if self.shrinkage is not None:
            return self.shrinkage
        if len(self.rows) < 3 or probes == 0:
            return SHRINKAGES[len(SHRINKAGES) // 2]
        if probes not in self._chosen:
            rows = sample(self.rows[:, self.seen], max(columns, 2 * probes))
            rng = np.random.default_rng([probes, 43])
            errors = np.zeros(len(SHRINKAGES))
            for row, truth in enumerate(rows):
                order = rng.permutation(len(truth))
                index, hidden = np.split(order, [min(probes, len(order) - 1)])
                others = np.delete(rows, row, axis=0)
                path = self._complete(others, index, truth[index], SHRINKAGES)
                errors += [np.square(line - truth)[hidden].mean() for line in path]
            self._chosen[probes] = SHRINKAGES[int(np.argmin(errors))]
        return self._chosen[probes]

    def _complete(self, rows, index, values, path) -> list[np.ndarray]:
        """Predictions (N,) for each shrinkage, each started from the one before."""
        means = rows.mean(axis=0)
        offset = (values - means[index]).mean() if len(index) else 0.0
        centred = rows - means
        new = np.zeros(rows.shape[1])
        new[index] = values - means[index] - offset
        inner = centred @ centred.T
        largest = np.sqrt(max(np.linalg.eigvalsh(inner)[-1], 0.0))
        stacked, found = np.vstack([centred, new]), []
        for shrinkage in path:
            self._iterate(stacked, inner, shrinkage * largest, index, new)
            total = _bordered(inner, centred, stacked[-1])
            found.append(means + offset + _last_row(total, shrinkage * largest) @ stacked)
        return found

    def _iterate(self, stacked, inner, cut, index, new) -> None:
        """Replaces the last row's unknown cells by the shrunk fit until they stay put."""
        for _ in range(self.iterations):
            fitted = _last_row(_bordered(inner, stacked[:-1], stacked[-1]), cut) @ stacked
            fitted[index] = new[index]
            moved = np.linalg.norm(fitted - stacked[-1])
            stacked[-1] = fitted
            if moved <= self.tolerance * max(np.linalg.norm(fitted), 1e-12):
                break


def _bordered(inner: np.ndarray, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Gram matrix of rows and one more, from that of the rows."""
    border = rows @ last
    return np.block([[inner, border[:, None]], [border[None], np.array([[last @ last]])]])


def _last_row(total: np.ndarray, cut: float) -> np.ndarray:
    """Weights (M + 1,) that give the last row of U max(s - cut, 0) V^T from the rows."""
    squares, u = np.linalg.eigh(total)
    singular = np.sqrt(np.maximum(squares, 0))
    kept = np.maximum(singular - cut, 0) / np.where(singular > 0, singular, 1)
    return (u[-1] * kept) @ u.T
