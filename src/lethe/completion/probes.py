"""Which examples to probe."""

from collections.abc import Mapping, Sequence

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.foldin import FoldInModel, gram, sample_columns, with_ones
from lethe.completion.gaussian import Gaussian
from lethe.completion.logistic_probes import probe_information

CHOICES = ("random", "stratified", "leverage", "a_optimal")
# These need a Z of 0s and 1s.
BINARY_CHOICES = ("a_optimal_logistic",)
# These choose by the training rows, so never an example that no training row knows.
CHOICES_BY_ROWS = ("leverage", "a_optimal", "a_optimal_logistic")


def random_probes(
    examples: int, count: int, seed: int, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Draws `count` of `examples` columns without replacement, sorted.

    Parameters
    ----------
    allowed
        Mask (N,) of the columns that may be probed; by default all.

    Raises
    ------
    ValueError
        If fewer than `count` columns are allowed.
    """
    pool = _pool(examples, count, allowed)
    return np.sort(np.random.default_rng([seed, 17]).choice(pool, count, replace=False))


def choose_probes(
    train: np.ndarray,
    k: int | None,
    method: str = "random",
    *,
    seed: int = 0,
    domains: Sequence[str] | None = None,
    allowed: np.ndarray | None = None,
    cost: np.ndarray | None = None,
    budget: float | None = None,
) -> np.ndarray:
    """Chooses k columns to probe on new tasks, from the training rows only; sorted (k,).

    - `random`: without replacement.
    - `stratified`: random, every domain with its share of the probes.
    - `leverage`: random with probabilities proportional to the columns' leverage scores under
      the training rows' leading factors.
    - `a_optimal`: greedily the columns that leave the least summed posterior variance of all
      columns under the Gaussian method, which knows that some columns are noisier than others.
    - `a_optimal_logistic`: greedily the columns that leave the least summed variance of the
      probabilities under `logistic_fa`, for a Z of 0s and 1s.

    Parameters
    ----------
    train
        Training rows (M, N) of Z, NaN where unknown.
    domains
        Domain of each example (N,), for `stratified`.
    allowed
        Mask (N,) of the columns that may be probed; by default all. A column that no training
        row knows can be probed at random, but the choices by training rows never choose it.
    k
        Number of probes. None means as many as the budget buys.
    cost
        Cost (N,) of measuring each example, such as its number of tokens, for `a_optimal`. Then
        probes are chosen by the variance that they remove per cost.
    budget
        The largest total cost. With it, k is the largest number of probes.

    Raises
    ------
    ValueError
        If the method is unknown, fewer than k columns may be probed, or domains are missing. If
        a cost is not above 0, there is a budget without costs, it buys no probe, or the method is
        not `a_optimal`.
    """
    if cost is not None or budget is not None or k is None:
        return _probes_for_budget(
            train, k=k, method=method, allowed=allowed, cost=cost, budget=budget
        )
    rows = np.asarray(train, dtype=np.float64)
    if method not in CHOICES + BINARY_CHOICES:
        known = ", ".join(CHOICES + BINARY_CHOICES)
        raise ValueError(f"no choice of probes {method!r}; known: {known}")
    if method == "random":
        return random_probes(rows.shape[1], count=k, seed=seed, allowed=allowed)
    pool = _pool(rows.shape[1], k, allowed)
    rng = np.random.default_rng([seed, 29])
    if method == "stratified":
        if domains is None or len(domains) != rows.shape[1]:
            raise ValueError(f"stratified probes need {rows.shape[1]} domains, one per column")
        return _stratified(pool, domains=np.asarray(domains)[pool], k=k, rng=rng)
    unfilled = rows
    rows, measured, pool = _measured_columns(rows, pool)
    if k > len(pool):
        raise ValueError(f"{k} probes wanted, training rows know {len(pool)} that may be probed")
    if method == "leverage":
        return measured[_leverage(rows, pool=pool, k=k, rng=rng)]
    if method == "a_optimal_logistic":
        return measured[_a_optimal_logistic(unfilled[:, measured], pool, k)]
    return measured[a_optimal(rows, pool, k)]


def _measured_columns(
    rows: np.ndarray, pool: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Filled rows of the columns that a row knows, their numbers, and the pool among them."""
    observed = np.isfinite(rows)
    measured = np.flatnonzero(observed.any(axis=0))
    pool = np.flatnonzero(np.isin(measured, pool))
    filled = fill(rows, observed)
    if len(measured) < rows.shape[1]:
        filled = filled[:, measured]
    return filled, measured, pool


def _probes_for_budget(
    train: np.ndarray,
    k: int | None,
    method: str,
    allowed: np.ndarray | None,
    cost: np.ndarray | None,
    budget: float | None,
) -> np.ndarray:
    """`choose_probes` by costs."""
    rows = np.asarray(train, dtype=np.float64)
    if method != "a_optimal":
        raise ValueError(f"probes are chosen by cost with a_optimal only (value seen: {method!r})")
    if cost is None or (k is None and budget is None):
        raise ValueError("a budget needs the cost of each example, and k=None needs a budget")
    cost = np.asarray(cost, dtype=np.float64)
    if cost.shape != rows.shape[1:] or not (cost > 0).all():
        raise ValueError(
            f"cost has shape {cost.shape}; expected a number above 0 per column ({rows.shape[1]})"
        )
    # With a budget, k is the largest number, and fewer examples may be allowed.
    pool = _pool(rows.shape[1], k if budget is None else 1, allowed)
    rows, measured, pool = _measured_columns(rows, pool)
    if budget is not None and not (cost[measured[pool]] <= budget).any():
        raise ValueError(
            f"a budget of {budget} buys no probe; the cheapest costs {cost[measured[pool]].min()}"
        )
    most = len(pool) if k is None else min(k, len(pool))
    return measured[a_optimal(rows, pool, most, cost=cost[measured[pool]], budget=budget)]


def _pool(examples: int, count: int, allowed: np.ndarray | None) -> np.ndarray:
    pool = np.arange(examples) if allowed is None else np.flatnonzero(allowed)
    if count > len(pool):
        raise ValueError(f"{count} probes wanted, {len(pool)} examples may be probed")
    return pool


def _stratified(
    pool: np.ndarray, domains: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Alternates between domains, each in random order and in proportion to its size."""
    order = np.empty(len(pool))
    for domain in np.unique(domains):
        members = rng.permutation(np.flatnonzero(domains == domain))
        # Evenly spaced, so that any first k hold every domain by its share.
        order[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.sort(pool[np.argsort(order, kind="stable")[:k]])


def _leverage(rows: np.ndarray, pool: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    values, u = np.linalg.eigh(centred @ centred.T)
    leading = np.argsort(-values)[: max(1, min(k, len(rows) - 1) // 2 or 1)]
    leading = leading[values[leading] > 1e-10 * max(values.max(), 1e-300)]
    factors = (u[:, leading] / np.sqrt(values[leading])).T @ centred
    scores = np.square(factors).sum(axis=0)[pool]
    # A column without leverage may still be needed to reach k.
    chances = scores + 1e-9 * max(scores.max(initial=0.0), 1e-9)
    return np.sort(rng.choice(pool, k, replace=False, p=chances / chances.sum()))


def a_optimal(
    rows: np.ndarray,
    pool: np.ndarray,
    k: int,
    cost: np.ndarray | None = None,
    budget: float | None = None,
) -> np.ndarray:
    """Greedy A-optimal design under the Gaussian method: k columns of `pool`, sorted.

    Probing column j reduces the summed posterior variance by |C F c|^2 / (c^T C c + d). C is the
    posterior covariance of the M + 2 directions, F the sum of their outer products over all
    columns, c the column's features and d its noise. Costs O(M^2) per column, and O(M) per column
    and step.

    Parameters
    ----------
    cost, budget
        Costs of the columns of `pool` and the largest sum that the chosen ones may have, as in
        `greedy_columns`.
    """
    method = Gaussian()
    total = gram(rows)
    prior, noise = method.parts(total)
    expected = k
    if budget is not None:
        # About so many probes will be bought; the noise factor is that of their number.
        expected = int(np.clip(budget // np.median(cost), 1, k))
    factor = FoldInModel(method, total, sample_columns(rows)).choose(expected)
    columns = greedy_columns(
        features=prior.basis @ with_ones(rows[:, pool]),
        variance=factor * noise.variance(rows[:, pool]),
        spread=prior.basis @ total @ prior.basis.T,
        k=k,
        cost=cost,
        budget=budget,
    )
    return np.sort(pool[columns])


def _a_optimal_logistic(rows: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    """Greedy A-optimal design under logistic factor analysis: k columns of `pool`, sorted."""
    information = probe_information(rows)
    columns = greedy_columns(
        features=information.features[:, pool],
        variance=information.variance[pool],
        spread=information.spread,
        k=k,
    )
    return np.sort(pool[columns])


def greedy_columns(
    features: np.ndarray,
    variance: np.ndarray,
    spread: np.ndarray,
    k: int,
    cost: np.ndarray | None = None,
    budget: float | None = None,
) -> np.ndarray:
    """Numbers of the columns that, one after another, reduce the summed variance most.

    Parameters
    ----------
    features
        Features (q, n) of the columns to choose from.
    variance
        Their noise variance (n,).
    spread
        Sum (q, q) over all columns of the outer products of their features.
    k
        How many columns are chosen.
    cost
        Costs (n,) above 0, by default all equal. Then a column is chosen by the variance that it
        removes per cost.
    budget
        Largest sum of costs. The choice ends when no further column can be paid for, with at most
        k columns.
    """
    posterior = np.eye(len(features))
    # Reductions w^T F w and variances c^T C c, where w = C c. Each step updates them from two
    # products of the features with a vector, so that no (q, n) matrix is made again.
    reduction = np.einsum("in,in->n", features, spread @ features)
    explained = np.einsum("in,in->n", features, features)
    cost_of = np.ones(features.shape[1]) if cost is None else np.asarray(cost, dtype=np.float64)
    remaining = float("inf") if budget is None else float(budget)
    available = np.ones(features.shape[1], dtype=bool)
    columns: list[int] = []
    for _ in range(k):
        available &= cost_of <= remaining
        if not available.any():
            break
        gain = reduction / ((np.maximum(explained, 0.0) + variance) * cost_of)
        gain[~available] = -np.inf
        best = int(np.argmax(gain))
        columns.append(best)
        available[best] = False
        remaining -= cost_of[best]
        direction = posterior @ features[:, best]
        size = features[:, best] @ direction + variance[best]
        along, across = np.stack([direction, posterior @ (spread @ direction)]) @ features
        share = along / size
        reduction += share * (share * (direction @ spread @ direction) - 2 * across)
        explained -= share * along
        posterior -= np.outer(direction, direction) / size
    return np.array(columns, dtype=int)


def probe_curve(
    train: np.ndarray,
    ks: Sequence[int],
    method: str = "random",
    *,
    seeds: Sequence[int] = range(3),
    domains: Sequence[str] | None = None,
    options: Mapping | None = None,
) -> dict[int, float]:
    """RMSE to expect on an unseen task, by number of probes, from the training rows alone.

    Every training row is left out in turn. Probes are chosen in one half of the columns, without
    the left-out row, and scored in the other half, so that chosen and random probes compare
    fairly.

    Raises
    ------
    ValueError
        If there are fewer than three training rows, or a k is over half the columns.
    """
    rows = np.asarray(train, dtype=np.float64)
    tasks, examples = rows.shape
    if tasks < 3:
        raise ValueError(f"{tasks} training tasks; a curve of error needs at least 3")
    squares: dict[int, list[float]] = {k: [] for k in ks}
    for row, truth in enumerate(rows):
        others = np.delete(rows, row, axis=0)
        fitted = Gaussian(**(options or {})).fit(others)
        for seed in seeds:
            half = half_of(examples, seed)
            scored = ~half & np.isfinite(truth)
            allowed = half & np.isfinite(truth)
            for k in ks:
                index = choose_probes(
                    others, k, method, seed=seed, domains=domains, allowed=allowed
                )
                error = fitted.predict(index, truth[index])[scored] - truth[scored]
                squares[k].append(float(np.square(error).mean()))
    return {k: float(np.sqrt(np.mean(values))) for k, values in squares.items()}


def half_of(examples: int, seed: int) -> np.ndarray:
    """Mask (N,) of a random half of the columns: probes come from it, scores from the other."""
    half = np.zeros(examples, dtype=bool)
    half[np.random.default_rng([seed, 31]).permutation(examples)[: examples // 2]] = True
    return half


def probes_needed(curve: Mapping[int, float], error: float) -> int | None:
    """The fewest probes that reach an error, or None if the largest measured k does not.

    Interpolates error against log k, which is close to a line, between the measured ks.
    """
    ks = sorted(curve)
    best = np.minimum.accumulate([curve[k] for k in ks])
    if best[-1] > error:
        return None
    first = int(np.argmax(best <= error))
    if first == 0:
        return ks[0]
    share = (best[first - 1] - error) / (best[first - 1] - best[first])
    low = np.log(ks[first - 1])
    high = np.log(ks[first])
    return int(np.ceil(np.exp(low + share * (high - low)) - 1e-9))
