"""Completion of a binary Z: a row's probabilities from a few probed 0s and 1s."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, logit

from lethe.completion.biases import fill
from lethe.completion.completer import Completer
from lethe.completion.foldin import sample_columns

RANKS = (0, 1, 2, 3, 5)
RIDGES = (0.3, 1.0, 3.0, 10.0)
# Logits stay in this range, where probabilities differ from 0 and 1 by more than rounding.
LIMIT = 12.0


def _probability(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)) of logits in range."""
    return expit(np.clip(logits, -LIMIT, LIMIT))


def check_binary(values: np.ndarray) -> None:
    """Raises ValueError if known values lie outside 0..1."""
    observed = values[np.isfinite(values)]
    if len(observed) and (observed.min() < 0 or observed.max() > 1):
        raise ValueError(
            f"logistic methods need Z in 0..1, seen {observed.min():.4g}..{observed.max():.4g}; "
            "use gaussian or mf for forgetting in nats"
        )


class LogisticFoldIn(Completer):
    """Logistic regression of the probes on factors of the training rows.

    Logit of example j = smoothed base rate's logit + offset + u . v_j. Factors v are singular
    vectors of the training rows' deviations from the base rates, in units of the base rates'
    standard deviation. Offset and u have unit Gaussian priors by `ridge`, so that a new task
    starts from the base rates.

    Parameters
    ----------
    rank, ridge
        By default chosen by leave-one-task-out for each number of probes, by log loss.
    """

    def __init__(self, rank: int | None = None, ridge: float | None = None):
        self.rank = rank
        self.ridge = ridge

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        check_binary(values)
        self._rows = np.clip(fill(values, observed), 0.0, 1.0)
        # Columns that no row knows are filled in, so they say nothing about how rows agree.
        self._measured = observed.any(axis=0)
        self._basis = _Basis(self._rows, self._measured)
        self._choices: dict[int, tuple[int, float]] = {}

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        rank, ridge = self._choose(len(index))
        logits = [self._basis.logits(index, row, rank=rank, ridge=ridge) for row in values]
        return _probability(np.array(logits))

    def _choose(self, probes: int) -> tuple[int, float]:
        ranks = RANKS if self.rank is None else (self.rank,)
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        grid = [(rank, ridge) for rank in ranks for ridge in ridges]
        if len(grid) == 1 or len(self._rows) < 3 or probes == 0:
            return grid[len(grid) // 2]
        if probes not in self._choices:
            rows = sample_columns(self._rows[:, self._measured])
            self._choices[probes] = _least_log_loss(rows, probes, grid)
        return self._choices[probes]


def _least_log_loss(
    rows: np.ndarray, probes: int, grid: Sequence[tuple[int, float]]
) -> tuple[int, float]:
    """The rank and ridge of `grid` with the least log loss on left-out rows (M, n)."""
    rng = np.random.default_rng([probes, 37])
    losses = np.zeros(len(grid))
    for row, truth in enumerate(rows):
        basis = _Basis(np.delete(rows, row, axis=0))
        order = rng.permutation(len(truth))
        # At least one cell stays unprobed, because probed cells cannot be judged.
        index, hidden = np.split(order, [min(probes, len(order) - 1)])
        for number, (rank, ridge) in enumerate(grid):
            logits = basis.logits(index, truth[index], rank=rank, ridge=ridge)[hidden]
            losses[number] += np.mean(np.logaddexp(0, logits) - truth[hidden] * logits)
    return grid[int(np.argmin(losses))]


class _Basis:
    """Base logits (N,) and features (N, 1 + R) whose combinations are new rows.

    Rates and factors are computed from the columns in the mask `measured` (N,), by default all.
    """

    def __init__(self, rows: np.ndarray, measured: np.ndarray | None = None):
        tasks = len(rows)
        used = slice(None) if measured is None else measured
        overall = (rows[:, used].sum() + 0.5) / (rows[:, used].size + 1)
        # One further task at the overall rate keeps every column's rate away from 0 and 1.
        rates = (rows.sum(axis=0) + overall) / (tasks + 1)
        self.base = np.log(rates) - np.log1p(-rates)
        deviations = (rows - rates) / np.sqrt(rates * (1 - rates))
        values, u = np.linalg.eigh(deviations[:, used] @ deviations[:, used].T)
        strongest = np.argsort(-values)[: max(RANKS)]
        strongest = strongest[values[strongest] > 1e-10 * max(values.max(), 1e-300)]
        factors = deviations.T @ u[:, strongest] / np.sqrt(tasks)
        self.features = np.hstack([np.ones((rows.shape[1], 1)), factors])

    def logits(self, index: np.ndarray, values: np.ndarray, rank: int, ridge: float) -> np.ndarray:
        """Logits (N,) from values (k,) at columns `index`."""
        features = self.features[:, : rank + 1]
        weights = fit_logistic(features[index], values, base=self.base[index], ridge=ridge)
        return np.clip(self.base + features @ weights, -LIMIT, LIMIT)


def fit_logistic(
    features: np.ndarray, values: np.ndarray, base: np.ndarray, ridge: float, steps: int = 30
) -> np.ndarray:
    """Weights (r,) of the penalised logistic regression of values (k,) on features (k, r).

    Newton's method, written here because a call of scipy's optimisers takes longer than this
    complete fit, and choosing rank and ridge needs thousands of fits.
    """
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        p = _probability(base + features @ weights)
        gradient = features.T @ (p - values) + ridge * weights
        curvature = (features.T * (p * (1 - p))) @ features + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        # A damped step cannot diverge where the curvature is nearly flat.
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

    Parameters
    ----------
    steps
        Steps of Adam. Stopping early is part of the method: at the minimum that scipy's L-BFGS
        finds, RMSE on unseen tasks was 7 to 16 percent larger.

    Attributes
    ----------
    fitted_ : ndarray of shape (M, N)
        Probabilities of the training rows themselves.
    """

    def __init__(self, rank: int = 5, decay: float = 0.1, steps: int = 300, seed: int = 0):
        self.rank = rank
        self.decay = decay
        self.steps = steps
        self.seed = seed

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        check_binary(values)
        rng = np.random.default_rng([self.seed, 41])
        tasks, examples = values.shape
        z = np.where(observed, values, 0.0)
        rate = (z.sum() + 0.5) / (observed.sum() + 1)
        base = logit((z.sum(axis=0) + rate) / (observed.sum(axis=0) + 1))[None]
        start = [
            np.zeros((tasks, 1)),
            base,
            rng.normal(0, 0.1, (tasks, self.rank)),
            rng.normal(0, 0.1, (self.rank, examples)),
        ]

        def gradients(parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
            rows, columns, u, v = parameters
            error = observed * (_probability(rows + columns + u @ v) - z)
            return [
                error.sum(axis=1, keepdims=True) + self.decay * rows,
                error.sum(axis=0, keepdims=True) + self.decay * (columns - base),
                error @ v.T + self.decay * u,
                u.T @ error + self.decay * v,
            ]

        rows, columns, u, v = _adam(start, gradients, self.steps)
        self.fitted_ = _probability(rows + columns + u @ v)
        self._base = columns[0]
        # The training tasks have unit variance in these factors, so one ridge suits all.
        self._factors = np.sqrt(np.square(u).mean(axis=0))[:, None] * v

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        features = np.vstack([np.ones(self.examples_), self._factors]).T
        logits = []
        for row in values:
            weights = fit_logistic(features[index], row, base=self._base[index], ridge=1.0)
            logits.append(self._base + features @ weights)
        return _probability(np.array(logits))


def _adam(
    start: Sequence[np.ndarray],
    gradients: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    steps: int,
    rate: float = 0.05,
) -> list[np.ndarray]:
    """Adam (Kingma and Ba 2015) with a rate that falls linearly to zero; the last parameters."""
    parameters = list(start)
    means = [np.zeros_like(part) for part in start]
    squares = [np.zeros_like(part) for part in start]
    for step in range(1, steps + 1):
        lowered_rate = rate * (1 - (step - 1) / steps)
        for i, gradient in enumerate(gradients(parameters)):
            means[i] += 0.1 * (gradient - means[i])
            squares[i] += 0.001 * (np.square(gradient) - squares[i])
            mean = means[i] / (1 - 0.9**step)
            square = squares[i] / (1 - 0.999**step)
            parameters[i] = parameters[i] - lowered_rate * mean / (np.sqrt(square) + 1e-8)
    return parameters


def logistic_f1_by_rank(values: np.ndarray, ranks: Sequence[int]) -> list[float]:
    """In-sample F1 of a binary Z (M, N) described by logistic factors of each rank.

    A cell is called forgotten where its probability is above one half (paper, section 3).
    Columns with a NaN are left out.

    Raises
    ------
    ValueError
        If Z has values outside 0..1.
    """
    complete = values[:, np.isfinite(values).all(axis=0)].astype(np.float64)
    positive = complete > 0.5
    scores = []
    for rank in ranks:
        called = LogisticMF(rank).fit(complete).fitted_ > 0.5
        hits = int((called & positive).sum())
        scores.append(2 * hits / max(int(called.sum()) + int(positive.sum()), 1))
    return scores
