"""Completion of a binary Z: a row's probabilities from a few probed 0s and 1s."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit, logit

from lethe.completion.completer import Completer

# Rounds of alternating solves; further ones change no prediction visibly.
ROUNDS = 12
# Prior precision of an example's logit around the mean of all.
BASE_PRECISION = 0.4
# Prior precision of an example's loadings v. The factors of the few training tasks are estimates
# themselves, so loadings that a few of them seem to support are mostly noise. Both precisions and
# the rank were chosen by leave-one-task-out on training tasks (docs/lab/exact-match.md).
LOADING_PRECISION = 12.0
# Equal training tasks do not show how far a new one may be off, so it is never quite excluded.
LEAST_OFFSET_SPREAD = 0.1
# Logits stay in this range, where probabilities differ from 0 and 1 by more than rounding.
LIMIT = 12.0


def bounded_probability(logits: np.ndarray) -> np.ndarray:
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


class LogisticFactorAnalysis(Completer):
    """Factor analysis of zeros and ones: a probability for every cell of a new row.

    Logit of task i and example j = a_i + b_j + u_i . v_j, with Gaussian priors: variance 1 on a and
    u, 1 / 12 on v, and 1 / 0.4 on b around its mean. Fitted by alternating ridge solves of all
    columns and all rows, with the variational weights of Jaakkola and Jordan (2000), "Bayesian
    parameter estimation via variational methods", Statistics and Computing 10. The new task's a
    and u follow from its probes by Newton's method. Its probabilities account for their
    uncertainty: sigmoid(eta / sqrt(1 + pi variance / 8)) (MacKay 1992).

    Parameters
    ----------
    rank
        Number of factors, at most one less than there are training tasks.

    Attributes
    ----------
    offsets_ : ndarray of shape (M,)
        a of the training tasks.
    base_ : ndarray of shape (N,)
        b of the examples.
    features_ : ndarray of shape (N, 1 + rank)
        The standard deviation of a, and v. A new task's combination of them has unit variance.
    """

    def __init__(self, rank: int = 5):
        self.rank = rank

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        check_binary(values)
        tasks = len(values)
        # Cells that were not measured have weight 0, whatever stands here.
        signs = np.where(observed, values - 0.5, 0.0)
        base, u, v = _start(values, observed, rank=max(0, min(self.rank, tasks - 1)))
        a = np.zeros(tasks)
        measured = observed.any(axis=0)
        for _ in range(ROUNDS):
            weights = _variational_weights(a, base, u, v) * observed
            base, v = _solve_columns(signs, weights, a=a, u=u, base_mean=base[measured].mean())
            weights = _variational_weights(a, base, u, v) * observed
            a, u = _solve_rows(signs, weights, base=base, v=v)
            # The factors carry the size, so that one ridge suits every new task.
            size = np.sqrt(np.square(u).mean(axis=0))
            size = np.where(size > 1e-12, size, 1.0)
            u = u / size
            v = v * size
            base = base + a.mean()
            a = a - a.mean()
        self.offsets_ = a
        self.base_ = base
        spread = max(float(a.std()), LEAST_OFFSET_SPREAD)
        self.features_ = np.column_stack([np.full(len(base), spread), v])

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        check_binary(values)
        probed = self.features_[index]
        probabilities = []
        for row in values:
            weights = fit_logistic(probed, row, base=self.base_[index], ridge=1.0)
            p = bounded_probability(self.base_[index] + probed @ weights)
            curvature = (probed.T * (p * (1 - p))) @ probed + np.eye(len(weights))
            # The variance of eta at every example, from the Cholesky factor of the curvature.
            scaled = np.linalg.solve(np.linalg.cholesky(curvature), self.features_.T)
            variance = np.square(scaled).sum(axis=0)
            eta = self.base_ + self.features_ @ weights
            probabilities.append(bounded_probability(eta / np.sqrt(1 + np.pi * variance / 8)))
        return np.array(probabilities)


def _start(
    values: np.ndarray, observed: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Base logits (N,), u (M, rank) and v (N, rank) from a decomposition of the deviations."""
    tasks = len(values)
    z = np.where(observed, values, 0.0)
    overall = (z.sum() + 0.5) / (observed.sum() + 1)
    # One further task at the overall rate keeps every column's rate away from 0 and 1.
    rates = (z.sum(axis=0) + overall) / (observed.sum(axis=0) + 1)
    deviations = np.where(observed, values - rates, 0.0) / np.sqrt(rates * (1 - rates))
    squares, directions = np.linalg.eigh(deviations @ deviations.T)
    u = directions[:, np.argsort(-squares, kind="stable")[:rank]] * np.sqrt(tasks)
    return logit(rates), u, deviations.T @ u / tasks


def _variational_weights(
    a: np.ndarray, base: np.ndarray, u: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Weights (M, N) of the quadratic bound on the log likelihood: tanh(|eta| / 2) / (2 |eta|)."""
    return variational_weight(np.abs(np.clip(a[:, None] + base + u @ v.T, -LIMIT, LIMIT)))


def variational_weight(size: np.ndarray) -> np.ndarray:
    """Weights tanh(xi / 2) / (2 xi) of the quadratic bound at logits of this size xi >= 0."""
    # The limit at 0 is 1 / 4.
    return np.where(size > 1e-6, np.tanh(size / 2) / (2 * np.maximum(size, 1e-6)), 0.25)


def _solve_columns(
    signs: np.ndarray, weights: np.ndarray, *, a: np.ndarray, u: np.ndarray, base_mean: float
) -> tuple[np.ndarray, np.ndarray]:
    """B (N,) and v (N, rank) by one ridge regression per column; `signs` are values - 1/2."""
    features = np.column_stack([np.ones(len(u)), u])
    precisions = np.append(BASE_PRECISION, np.full(u.shape[1], LOADING_PRECISION))
    target = (signs - weights * a[:, None]).T @ features
    target[:, 0] += BASE_PRECISION * base_mean
    solved = _solve_ridges(weights.T, features=features, precisions=precisions, target=target)
    return solved[:, 0], solved[:, 1:]


def _solve_rows(
    signs: np.ndarray, weights: np.ndarray, *, base: np.ndarray, v: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A (M,) and u (M, rank) by one ridge regression per row."""
    features = np.column_stack([np.ones(len(v)), v])
    target = (signs - weights * base) @ features
    precisions = np.ones(features.shape[1])
    solved = _solve_ridges(weights, features=features, precisions=precisions, target=target)
    return solved[:, 0], solved[:, 1:]


def _solve_ridges(
    weights: np.ndarray, *, features: np.ndarray, precisions: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Coefficients (n, r) of n ridge regressions on shared features (m, r), weights (n, m)."""
    size = features.shape[1]
    products = (features[:, :, None] * features[:, None, :]).reshape(len(features), size * size)
    curvature = (weights @ products).reshape(-1, size, size) + np.diag(precisions)
    return np.linalg.solve(curvature, target[..., None])[..., 0]


def fit_logistic(
    features: np.ndarray, values: np.ndarray, base: np.ndarray, ridge: float, steps: int = 30
) -> np.ndarray:
    """Weights (r,) of the penalised logistic regression of values (k,) on features (k, r).

    Newton's method, written here because a call of scipy's optimisers takes longer than this
    complete fit, and choosing rank and ridge needs thousands of fits.
    """
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        p = bounded_probability(base + features @ weights)
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
            error = observed * (bounded_probability(rows + columns + u @ v) - z)
            return [
                error.sum(axis=1, keepdims=True) + self.decay * rows,
                error.sum(axis=0, keepdims=True) + self.decay * (columns - base),
                error @ v.T + self.decay * u,
                u.T @ error + self.decay * v,
            ]

        rows, columns, u, v = _adam(start, gradients, self.steps)
        self.fitted_ = bounded_probability(rows + columns + u @ v)
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
        return bounded_probability(np.array(logits))


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
