"""Gaussian completion whose mean and covariance are shrunk towards those of another model's rows.

A sibling (`lethe.completion.sibling`) needs the new task's row on the other model. A prior does
not. The other model's rows Y are mapped to the model's own scale by one slope and one offset per
example (`combine_mapped_rows`). They are then added to the training rows, and each counts w of a
training row in the mean, in the covariance and in the noise of the columns. Leave-one-task-out
chooses w, together with the factor on the noise. 0, which ignores the prior, is among the choices.

All choices need no more than the Gram matrix of [Z; Y; 1] and a sample of columns.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.column_noise import ColumnNoise
from lethe.completion.completer import Completer
from lethe.completion.foldin import (
    LEFT_OUT,
    Prior,
    draw_columns,
    gram,
    sample_columns,
    squared_errors,
    with_ones,
)
from lethe.completion.gaussian import NOISES, Gaussian
from lethe.completion.other_model import read_other_model
from lethe.matrix.forgetting_matrix import Matrix

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0)
# With fewer training tasks there is none to leave out, so the prior's rows count fully.
FEWEST_TASKS = 2
# With more training tasks, the weight is judged on this many of them, drawn at random.
JUDGED_TASKS = 64


class GaussianWithPrior(Completer):
    """The Gaussian method, with the rows of another model as further training rows of less weight.

    With a weight of 0 the predictions are those of `Gaussian`. The method has no intervals.

    Attributes
    ----------
    rows_ : ndarray of shape (M, N)
        Training rows, unknown cells filled in.
    """

    def fit(self, train: np.ndarray, prior: np.ndarray, same_task: Sequence[int | None]) -> Self:
        """Learns from training rows (M, N) and from rows (P, N) of another model, both in nats.

        Parameters
        ----------
        train
            NaN cells are ignored.
        prior
            Rows of tasks on the other model, on the same examples. NaN cells are ignored.
        same_task
            Per row of `prior`, the number of the row of `train` that belongs to the same task, or
            None. At least one row must belong to the same task, because the scale of the other
            model's forgetting is learned from such rows.

        Raises
        ------
        ValueError
            If an array has another shape, no known cell or an infinite one, or if no row of
            `prior` belongs to a task of `train`.
        """
        self._check_prior(np.shape(train), np.shape(prior), same_task)
        values = np.array(prior, dtype=np.float64)
        if np.isinf(values).any():
            raise ValueError(f"prior has {np.isinf(values).sum()} infinite cells; use NaN")
        observed = np.isfinite(values)
        if not observed.any():
            raise ValueError("prior has no known cell")
        self._own = Gaussian().fit(train)
        self._prior_rows = fill(values, observed)
        self._same_task = list(same_task)
        super().fit(train)
        return self

    def weight(self, probes: int) -> float:
        """Weight of a row of the prior for this number of probes; 0 if the prior does not help."""
        return self._choose(probes)[0]

    def _check_prior(
        self,
        shape: tuple[int, ...],
        prior_shape: tuple[int, ...],
        same_task: Sequence[int | None],
    ) -> None:
        if len(prior_shape) != 2 or prior_shape[1:] != shape[1:] or not prior_shape[0]:
            raise ValueError(
                f"prior has shape {prior_shape}; expected rows of the examples of train, {shape}"
            )
        if len(same_task) != prior_shape[0]:
            raise ValueError(f"same_task has {len(same_task)} values for {prior_shape[0]} rows")
        numbers = [number for number in same_task if number is not None]
        if not numbers or min(numbers) < 0 or max(numbers) >= shape[0]:
            raise ValueError(
                f"same_task is {list(same_task)}; it needs at least one number of a row of train, "
                f"0 to {shape[0] - 1}"
            )

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        self.rows_ = fill(values, observed)
        stacked = np.vstack([self.rows_, self._prior_rows])
        # Columns that no training row knows are filled in, so they say nothing about a weight.
        measured = observed.any(axis=0)
        self._total = gram(stacked[:, measured])
        self._sample = with_ones(sample_columns(stacked[:, measured]))
        self._stacked = stacked
        self._choices: dict[int, tuple[float, float]] = {}

    @property
    def _tasks(self) -> int:
        return len(self.rows_)

    def _choose(self, probes: int) -> tuple[float, float]:
        """The weight and the factor on the noise of least squared error on left-out tasks."""
        if self._tasks < FEWEST_TASKS:
            return WEIGHTS[-1], Gaussian.default
        if probes not in self._choices:
            factors = NOISES if probes else (Gaussian.default,)
            errors = np.zeros((len(WEIGHTS), len(factors)))
            for row in self._judged_rows():
                for number, weight in enumerate(WEIGHTS):
                    errors[number] += self._left_out_errors(row, weight, probes, factors)
            best, factor = np.unravel_index(int(np.argmin(errors)), errors.shape)
            self._choices[probes] = (WEIGHTS[best], factors[factor])
        return self._choices[probes]

    def _judged_rows(self) -> np.ndarray:
        if self._tasks <= JUDGED_TASKS:
            return np.arange(self._tasks)
        rng = np.random.default_rng([self._tasks, 59])
        return np.sort(rng.choice(self._tasks, JUDGED_TASKS, replace=False))

    def _left_out_errors(
        self, row: int, weight: float, probes: int, factors: Sequence[float]
    ) -> np.ndarray:
        """Squared errors (F,) of a training row that is predicted as the row of a new task.

        The other model's row of that task is left out as well, and the mapping is learned without
        both.
        """
        combinations = self._combinations(left_out=row)
        included = np.arange(self._tasks)
        if weight:
            of_others = [n for n, task in enumerate(self._same_task) if task != row]
            included = np.append(included, self._tasks + np.array(of_others, dtype=int))
        combinations = combinations[np.append(included, len(combinations) - 1)]
        total = combinations @ self._total @ combinations.T
        remaining = np.delete(np.arange(len(total)), row)
        row_weights = np.where(included < self._tasks, 1.0, weight)[remaining[:-1]]
        parts = weighted_parts(total[np.ix_(remaining, remaining)], row_weights)
        draws = -(-LEFT_OUT // self._tasks) if probes else 1
        errors = np.zeros(len(factors))
        for index in draw_columns(self._sample.shape[1], count=probes, draws=draws, seed=0):
            errors += squared_errors(
                self._own,
                parts=parts,
                total=total,
                probed=combinations @ self._sample[:, index],
                row=row,
                candidates=factors,
            )
        return errors

    def _combinations(self, left_out: int | None = None) -> np.ndarray:
        """(M + P + 1, M + P + 1): the combinations of [Z; Y; 1] that are [Z; mapped Y; 1]."""
        pairs = []
        for number, task in enumerate(self._same_task):
            if task is not None and task != left_out:
                pairs.append((task, self._tasks + number))
        combinations = np.eye(len(self._total))
        prior_rows = slice(self._tasks, len(self._total) - 1)
        combinations[prior_rows] = combine_mapped_rows(self._total, pairs, prior_rows)
        return combinations

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        weight, factor = self._choose(len(index))
        if not weight:
            return self._own.predict(index, values)
        combinations = self._combinations()
        row_weights = np.append(np.ones(self._tasks), np.full(len(self._prior_rows), weight))
        parts = weighted_parts(combinations @ self._total @ combinations.T, row_weights)
        weights = self._own.weights(
            parts,
            probed=combinations @ with_ones(self._stacked[:, index]),
            values=values,
            candidates=[factor],
        )[0]
        weights = weights @ combinations
        return weights[:, :-1] @ self._stacked + weights[:, -1:]


def combine_mapped_rows(
    total: np.ndarray, pairs: Sequence[tuple[int, int]], mapped: slice
) -> np.ndarray:
    """Combinations (P, R) of all rows that are the other model's rows on the scale of the model.

    There is one slope for all examples, by least squares around the examples' means over the
    shared tasks, and one offset per example, shrunk as if one more task had none. With one shared
    task the slope is 1, and without any the rows stay as they are.

    Parameters
    ----------
    total
        Gram matrix (R, R) of all rows, the last of which are ones.
    pairs
        Numbers of the rows of each shared task, on the model and on the other model.
    mapped
        Numbers of the rows that are mapped.
    """
    combinations = np.eye(len(total))[mapped]
    if not pairs:
        return combinations
    own = np.eye(len(total))[[pair[0] for pair in pairs]]
    other = np.eye(len(total))[[pair[1] for pair in pairs]]
    own_mean = own.mean(axis=0)
    other_mean = other.mean(axis=0)
    squares = np.einsum("ir,rs,is->", other - other_mean, total, other - other_mean)
    products = np.einsum("ir,rs,is->", other - other_mean, total, own - own_mean)
    slope = products / squares if len(pairs) > 1 and squares > 0 else 1.0
    difference = own_mean - slope * other_mean
    level = np.zeros(len(total))
    level[-1] = total[-1] @ difference / total[-1, -1]
    offsets = level + (difference - level) * len(pairs) / (len(pairs) + 1)
    return offsets + slope * combinations


def weighted_parts(total: np.ndarray, weights: np.ndarray) -> tuple[Prior, ColumnNoise]:
    """The parts of `Gaussian` if each row i of Z counts weights[i], from the Gram matrix of [Z; 1].

    With equal weights they are those of `Gaussian.parts`.
    """
    count = weights.sum()
    shares = weights / count
    mean = np.append(shares, 0.0)
    centred = np.eye(len(weights), len(total)) - mean
    roots = np.sqrt(weights)[:, None]
    row_means = total[:-1, -1] / total[-1, -1]
    size = mean @ total @ mean
    row_scales = total[:-1] @ mean / size if size > 0 else np.zeros(len(weights))
    directions = [
        np.append(np.zeros(len(weights)), _spread(row_means, shares)),
        _spread(row_scales, shares) * mean,
        roots * centred / np.sqrt(count),
    ]
    prior = Prior(mean=mean, basis=np.vstack(directions))
    return prior, weighted_column_noise(total, weights)


def _spread(values: np.ndarray, shares: np.ndarray) -> float:
    """Weighted standard deviation of values (M,); shares add up to 1."""
    return max(float(np.sqrt(shares @ np.square(values - shares @ values))), 1e-6)


def weighted_column_noise(
    total: np.ndarray, weights: np.ndarray, ridge: float = 0.1
) -> ColumnNoise:
    """Noise of each column as of `estimate_column_noise`, if each row i counts weights[i].

    The ridge regressions are those of the centred rows, each multiplied by the root of its weight.
    """
    count = weights.sum()
    centred = np.eye(len(weights), len(total)) - np.append(weights / count, 0.0)
    scaled = np.sqrt(weights)[:, None] * centred
    products = scaled @ total @ scaled.T
    size = max(ridge * np.trace(products) / count, 1e-12)
    inverse = np.linalg.inv(products + size * np.eye(len(weights)))
    diagonal = np.diag(inverse)
    residual = (inverse @ scaled[:, :-1]) / diagonal[:, None]
    squares = (diagonal - size * np.square(inverse).sum(axis=1)) / np.square(diagonal)
    pooled = max(squares.sum(), 0.0) / (count * total[-1, -1])
    return ColumnNoise(residual=residual, pooled=pooled, weight=float(count))


def without_tasks(prior: Matrix, tasks: Sequence[str]) -> Matrix:
    """The prior without the rows of these tasks, such as those that are predicted."""
    excluded = set(tasks)
    names = [task for task in prior.tasks if task not in excluded]
    return Matrix(
        values=prior.values[prior.rows(names)], tasks=names, example_ids=prior.example_ids
    )


def numbers_of_same_tasks(prior: Sequence[str], train: Sequence[str]) -> list[int | None]:
    """Per task of the prior, its number among the training tasks, or None (`GaussianWithPrior`)."""
    numbers = {task: number for number, task in enumerate(train)}
    return [numbers.get(task) for task in prior]


def read_prior(path: Path, z: Matrix) -> Matrix:
    """Reads another model's Z, with its examples in the order of `z` and all its tasks.

    Raises
    ------
    LetheError
        If the file is no Z, lacks some of the examples, or has none of the tasks.
    """
    return read_other_model(
        path, z, role="a prior", rule="needs some tasks that your model has learned"
    )
