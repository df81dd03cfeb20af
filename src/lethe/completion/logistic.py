"""Completion of a binary Z, a row's probabilities from a few probed 0s and 1s."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.completer import Completer
from lethe.completion.foldin import sample

RANKS = (0, 1, 2, 3, 5)
RIDGES = (0.3, 1.0, 3.0, 10.0)
# Logits are kept in this range, where a probability is told apart from 0 and 1.
LIMIT = 12.0


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), without overflow."""
    return 1 / (1 + np.exp(-np.clip(logits, -LIMIT, LIMIT)))


def check_binary(values: np.ndarray) -> None:
    """Raises ValueError if known values lie outside 0..1."""
    seen = values[np.isfinite(values)]
    if len(seen) and (seen.min() < 0 or seen.max() > 1):
        raise ValueError(
            f"logistic methods need Z in 0..1, seen {seen.min():.4g}..{seen.max():.4g}; "
            "use gaussian or mf for forgetting in nats"
        )


class LogisticFoldIn(Completer):
    """Logistic regression of the probes on factors of the training rows.

    Logit of example j = smoothed base rate's logit + offset + u . v_j. Factors v are singular
    vectors of the training rows' deviations from the base rates, in units of the base rates'
    standard deviation; offset and u have unit Gaussian priors by `ridge`, so that a new task
    starts from the base rates. Solved by Newton's method. Rank and ridge are chosen by
    leave-one-task-out for each number of probes, by log loss, unless given.
    """

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank, self.ridge = rank, ridge

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        check_binary(values)
        self.rows = np.clip(fill(values, known), 0.0, 1.0)
        # What no row knows is filled in, and no evidence of how rows go together.
        self.seen = known.any(axis=0)
        self.basis = _Basis(self.rows, self.seen)
        self._chosen: dict[int, tuple[int, float]] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        choice = self._choice(len(index))
        return np.array([sigmoid(self.basis.logits(index, row, *choice)) for row in values])

    def _choice(self, probes: int) -> tuple[int, float]:
        ranks = RANKS if self.rank is None else (self.rank,)
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        grid = [(rank, ridge) for rank in ranks for ridge in ridges]
        if len(grid) == 1 or len(self.rows) < 3 or probes == 0:
            return grid[len(grid) // 2]
        if probes not in self._chosen:
            self._chosen[probes] = _least_log_loss(sample(self.rows[:, self.seen]), probes, grid)
        return self._chosen[probes]


def _least_log_loss(rows: np.ndarray, probes: int, grid: Sequence[tuple[int, float]]):
    rng = np.random.default_rng([probes, 37])
    losses = np.zeros(len(grid))
    for row, truth in enumerate(rows):
        basis = _Basis(np.delete(rows, row, axis=0))
        order = rng.permutation(len(truth))
        # One cell at least stays unprobed, else there is nothing to judge by.
        index, hidden = np.split(order, [min(probes, len(order) - 1)])
        for place, choice in enumerate(grid):
            logits = basis.logits(index, truth[index], *choice)[hidden]
            losses[place] += np.mean(np.logaddexp(0, logits) - truth[hidden] * logits)
    return grid[int(np.argmin(losses))]


class _Basis:
    """Base logits (N,) and features (N, 1 + R) of which new rows are combinations.

    Rates and factors come from the columns in the mask `seen` (N,); none: all.
    """

    def __init__(self, rows: np.ndarray, seen: np.ndarray | None = None):
        tasks = len(rows)
        used = slice(None) if seen is None else seen
        whole = (rows[:, used].sum() + 0.5) / (rows[:, used].size + 1)
        # A column is one task's worth drawn to the rate of all: none is certain.
        rates = (rows.sum(axis=0) + whole) / (tasks + 1)
        self.base = np.log(rates) - np.log1p(-rates)
        deviations = (rows - rates) / np.sqrt(rates * (1 - rates))
        values, u = np.linalg.eigh(deviations[:, used] @ deviations[:, used].T)
        kept = np.argsort(-values)[: max(RANKS)]
        kept = kept[values[kept] > 1e-10 * max(values.max(), 1e-300)]
        factors = deviations.T @ u[:, kept] / np.sqrt(tasks)
        self.features = np.hstack([np.ones((rows.shape[1], 1)), factors])

    def logits(self, index: np.ndarray, values: np.ndarray, rank: int, ridge: float) -> np.ndarray:
        """Logits (N,) from values (k,) at columns `index`."""
        features = self.features[:, : rank + 1]
        weights = newton(features[index], values, self.base[index], ridge)
        return np.clip(self.base + features @ weights, -LIMIT, LIMIT)


def newton(
    features: np.ndarray, values: np.ndarray, base: np.ndarray, ridge: float, steps: int = 30
) -> np.ndarray:
    """Weights (r,) of the penalised logistic regression of values (k,) on features (k, r)."""
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        p = sigmoid(base + features @ weights)
        gradient = features.T @ (p - values) + ridge * weights
        curvature = (features.T * (p * (1 - p))) @ features + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        # A damped step cannot run away where the curvature is nearly flat.
        weights -= step / max(1.0, np.abs(step).max() / 2)
        if np.abs(step).max() < 1e-8:
            break
    return weights


class LogisticMF(Completer):
    """Logistic matrix factorisation of the training rows, fitted by gradient descent.

    Logit = offset + task + example + u_i . v_j, with a penalty `decay` on the factors, fitted by
    Adam on all known cells (paper, section 3, has plain full-batch descent and no offsets). The
    new task's offset and u follow from its probes by logistic ridge regression with a penalty of
    1, on factors scaled so that the training tasks' u have unit mean square.
    """

    def __init__(self, rank: int = 5, decay: float = 0.1, steps: int = 300, seed: int = 0):
        self.rank, self.decay, self.steps, self.seed = rank, decay, steps, seed

    def _fit(self, values: np.ndarray, known: np.ndarray) -> None:
        check_binary(values)
        rng = np.random.default_rng([self.seed, 41])
        tasks, examples = values.shape
        z = np.where(known, values, 0.0)
        rate = (z.sum() + 0.5) / (known.sum() + 1)
        columns = (z.sum(axis=0) + rate) / (known.sum(axis=0) + 1)
        start = [
            np.zeros((tasks, 1)),
            (np.log(columns) - np.log1p(-columns))[None],
            rng.normal(0, 0.1, (tasks, self.rank)),
            rng.normal(0, 0.1, (self.rank, examples)),
        ]
        center = start[1].copy()
        rows, columns, u, self.factors = _adam(
            start, lambda p: self._gradients(p, z, known, center), self.steps
        )
        # Of the training rows themselves: how well so few numbers describe them.
        self.fitted = sigmoid(rows + columns + u @ self.factors)
        self.base = columns[0]
        # Factors in which the training tasks have unit variance, so that one ridge serves all.
        self.factors = np.sqrt(np.square(u).mean(axis=0))[:, None] * self.factors

    def _gradients(self, parameters, z, known, center):
        rows, columns, u, v = parameters
        missed = known * (sigmoid(rows + columns + u @ v) - z)
        return (
            missed.sum(axis=1, keepdims=True) + self.decay * rows,
            missed.sum(axis=0, keepdims=True) + self.decay * (columns - center),
            missed @ v.T + self.decay * u,
            u.T @ missed + self.decay * v,
        )

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        features = np.vstack([np.ones(self.examples), self.factors]).T
        logits = [
            self.base + features @ newton(features[index], row, self.base[index], ridge=1.0)
            for row in values
        ]
        return sigmoid(np.array(logits))


def f1_by_rank(values: np.ndarray, ranks: Sequence[int]) -> list[float]:
    """In-sample F1 of a binary Z (M, N) described by logistic factors of each rank.

    A cell is called forgotten where its probability is above one half (paper, section 3);
    columns with a NaN are left out.

    Raises
    ------
    ValueError
        If Z holds other than 0..1.
    """
    known = values[:, np.isfinite(values).all(axis=0)].astype(np.float64)
    positive, found = known > 0.5, []
    for rank in ranks:
        called = LogisticMF(rank).fit(known).fitted > 0.5
        both = int((called & positive).sum())
        found.append(2 * both / max(int(called.sum()) + int(positive.sum()), 1))
    return found


def _adam(parameters: list[np.ndarray], gradients, steps: int, rate: float = 0.05):
    """Adam with a rate that falls to zero; returns the last parameters."""
    means = [np.zeros_like(p) for p in parameters]
    squares = [np.zeros_like(p) for p in parameters]
    for step in range(1, steps + 1):
        for i, gradient in enumerate(gradients(parameters)):
            means[i] += 0.1 * (gradient - means[i])
            squares[i] += 0.001 * (np.square(gradient) - squares[i])
            mean, square = means[i] / (1 - 0.9**step), squares[i] / (1 - 0.999**step)
            lowered = rate * (1 - (step - 1) / steps)
            parameters[i] = parameters[i] - lowered * mean / (np.sqrt(square) + 1e-8)
    return parameters
