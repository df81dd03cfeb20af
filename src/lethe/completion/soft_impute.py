"""Soft-impute: the matrix of least nuclear norm that fits the known cells (Mazumder et al. 2010).

Written here in NumPy because no maintained library has it (fancyimpute's last release is of 2021).
"""

from collections.abc import Sequence

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.completer import Completer
from lethe.completion.foldin import sample_columns

# Shrinkage of singular values, relative to the largest of the training rows, from strong to weak.
SHRINKAGES = (0.4, 0.2, 0.1, 0.05, 0.02)


class SoftImpute(Completer):
    """Iterated soft-thresholded SVD of the training rows with the new row's probes below them.

    Column means of the training rows and the new row's mean residual are subtracted first. The
    shrinkage is reached by a path from strong to weak. Every iteration is a complete SVD of
    M + 1 rows, through their Gram matrix.

    Parameters
    ----------
    shrinkage
        Relative to the largest singular value; by default chosen by leave-one-task-out for each
        number of probes.
    iterations, tolerance
        Per shrinkage, iterations stop at this number, or when the new row changes by less than
        this share of its norm.
    """

    def __init__(
        self, shrinkage: float | None = None, iterations: int = 100, tolerance: float = 1e-4
    ):
        self.shrinkage = shrinkage
        self.iterations = iterations
        self.tolerance = tolerance

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        self._rows = fill(values, observed)
        self._measured = observed.any(axis=0)
        self._choices: dict[int, float] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        shrinkage = self._choose(len(index))
        path = [value for value in SHRINKAGES if value > shrinkage] + [shrinkage]
        # Filled-in columns that no row knows would count as columns where all rows agree.
        used = self._measured.copy()
        used[index] = True
        probed = np.flatnonzero(used).searchsorted(index)
        means = self._rows.mean(axis=0)
        offsets = (values - means[index]).sum(axis=1) / max(len(index), 1)
        predicted = means + offsets[:, None]
        for row, probe_values in zip(predicted, values, strict=True):
            row[used] = self._complete(
                self._rows[:, used], index=probed, values=probe_values, path=path
            )[-1]
        return predicted

    def _choose(self, probes: int, columns: int = 300) -> float:
        if self.shrinkage is not None:
            return self.shrinkage
        if len(self._rows) < 3 or probes == 0:
            return SHRINKAGES[len(SHRINKAGES) // 2]
        if probes not in self._choices:
            rows = sample_columns(self._rows[:, self._measured], max(columns, 2 * probes))
            rng = np.random.default_rng([probes, 43])
            errors = np.zeros(len(SHRINKAGES))
            for row, truth in enumerate(rows):
                order = rng.permutation(len(truth))
                index, hidden = np.split(order, [min(probes, len(order) - 1)])
                others = np.delete(rows, row, axis=0)
                path = self._complete(others, index=index, values=truth[index], path=SHRINKAGES)
                errors += [np.square(line - truth)[hidden].mean() for line in path]
            self._choices[probes] = SHRINKAGES[int(np.argmin(errors))]
        return self._choices[probes]

    def _complete(
        self, rows: np.ndarray, index: np.ndarray, values: np.ndarray, path: Sequence[float]
    ) -> list[np.ndarray]:
        """Predictions (N,) for each shrinkage, each started from the previous one."""
        means = rows.mean(axis=0)
        offset = (values - means[index]).mean() if len(index) else 0.0
        centred = rows - means
        new = np.zeros(rows.shape[1])
        new[index] = values - means[index] - offset
        inner = centred @ centred.T
        largest = np.sqrt(max(np.linalg.eigvalsh(inner)[-1], 0.0))
        stacked = np.vstack([centred, new])
        predictions = []
        for shrinkage in path:
            cut = shrinkage * largest
            self._iterate(stacked, inner=inner, cut=cut, index=index, new=new)
            total = _bordered(inner, centred, stacked[-1])
            predictions.append(means + offset + _last_row(total, cut) @ stacked)
        return predictions

    def _iterate(
        self,
        stacked: np.ndarray,
        inner: np.ndarray,
        cut: float,
        index: np.ndarray,
        new: np.ndarray,
    ) -> None:
        """Replaces the last row's unknown cells by the shrunk fit until it hardly changes."""
        for _ in range(self.iterations):
            fitted = _last_row(_bordered(inner, stacked[:-1], stacked[-1]), cut) @ stacked
            fitted[index] = new[index]
            change = np.linalg.norm(fitted - stacked[-1])
            stacked[-1] = fitted
            if change <= self.tolerance * max(np.linalg.norm(fitted), 1e-12):
                break


def _bordered(inner: np.ndarray, rows: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Gram matrix of rows and one more, from the Gram matrix of the rows."""
    border = rows @ last
    return np.block([[inner, border[:, None]], [border[None], np.array([[last @ last]])]])


def _last_row(total: np.ndarray, cut: float) -> np.ndarray:
    """Weights (M + 1,) that give the last row of U max(s - cut, 0) V^T from the rows."""
    squares, u = np.linalg.eigh(total)
    singular = np.sqrt(np.maximum(squares, 0))
    shares = np.maximum(singular - cut, 0) / np.where(singular > 0, singular, 1)
    return (u[-1] * shares) @ u.T
