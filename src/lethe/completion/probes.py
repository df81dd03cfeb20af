"""Which examples to probe."""

from collections.abc import Mapping, Sequence

import numpy as np

from lethe.completion.biases import fill
from lethe.completion.foldin import Model, gram, sample, with_ones
from lethe.completion.gaussian import Gaussian

CHOICES = ("random", "stratified", "leverage", "a_optimal")


def random_probes(
    examples: int, count: int, seed: int, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Draws `count` of `examples` columns without replacement, sorted.

    Parameters
    ----------
    allowed
        Mask (N,) of the columns that may be probed; none: all.

    Raises
    ------
    ValueError
        If fewer than `count` columns are allowed.
    """
    pool = _pool(examples, count, allowed)
    return np.sort(np.random.default_rng([seed, 17]).choice(pool, count, replace=False))


def choose_probes(
    train: np.ndarray,
    k: int,
    method: str = "random",
    *,
    seed: int = 0,
    domains: Sequence[str] | None = None,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Chooses k columns to probe on new tasks, from the training rows only; sorted (k,).

    - `random`: without replacement.
    - `stratified`: random, every domain with its share of the probes.
    - `leverage`: random with probabilities proportional to the columns' leverage scores under
      the training rows' leading factors.
    - `a_optimal`: greedily those that leave the least summed posterior variance of all columns
      under the Gaussian method, which knows that some columns are noisier than others.

    Parameters
    ----------
    train
        Training rows (M, N) of Z, NaN where unknown.
    domains
        Domain of each example (N,), for `stratified`.
    allowed
        Mask (N,) of the columns that may be probed; none: all. Columns that no training row
        knows can be probed at random, never for what training rows say of them.

    Raises
    ------
    ValueError
        If the method is not known, fewer than k columns may be probed, or domains are missing.
    """
    rows = np.asarray(train, dtype=np.float64)
    if method not in CHOICES:
        raise ValueError(f"no choice of probes {method!r}; known: {', '.join(CHOICES)}")
    if method == "random":
        return random_probes(rows.shape[1], k, seed, allowed)
    pool = _pool(rows.shape[1], k, allowed)
    rng = np.random.default_rng([seed, 29])
    if method == "stratified":
        if domains is None or len(domains) != rows.shape[1]:
            raise ValueError(f"stratified probes need {rows.shape[1]} domains, one a column")
        return _stratified(pool, np.asarray(domains)[pool], k, rng)
    known = np.isfinite(rows)
    seen = np.flatnonzero(known.any(axis=0))
    rows, pool = fill(rows, known)[:, seen], np.flatnonzero(np.isin(seen, pool))
    if k > len(pool):
        raise ValueError(f"{k} probes wanted, training rows know {len(pool)} that may be probed")
    return seen[_leverage(rows, pool, k, rng) if method == "leverage" else a_optimal(rows, pool, k)]


def _pool(examples: int, count: int, allowed: np.ndarray | None) -> np.ndarray:
    pool = np.arange(examples) if allowed is None else np.flatnonzero(allowed)
    if count > len(pool):
        raise ValueError(f"{count} probes wanted, {len(pool)} examples may be probed")
    return pool


def _stratified(pool: np.ndarray, domains: np.ndarray, k: int, rng) -> np.ndarray:
    """Takes turns between domains, each in random order and first in proportion to its size."""
    order = np.empty(len(pool))
    for domain in np.unique(domains):
        members = rng.permutation(np.flatnonzero(domains == domain))
        # Evenly spread places, so that any first k hold every domain by its share.
        order[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.sort(pool[np.argsort(order, kind="stable")[:k]])


def _leverage(rows: np.ndarray, pool: np.ndarray, k: int, rng) -> np.ndarray:
    centred = rows - rows.mean(axis=0)
    values, u = np.linalg.eigh(centred @ centred.T)
    kept = np.argsort(-values)[: max(1, min(k, len(rows) - 1) // 2 or 1)]
    kept = kept[values[kept] > 1e-10 * max(values.max(), 1e-300)]
    scores = np.square((u[:, kept] / np.sqrt(values[kept])).T @ centred).sum(axis=0)[pool]
    # A column without leverage may still be needed to reach k.
    chances = scores + 1e-9 * max(scores.max(initial=0.0), 1e-9)
    return np.sort(rng.choice(pool, k, replace=False, p=chances / chances.sum()))


def a_optimal(rows: np.ndarray, pool: np.ndarray, k: int) -> np.ndarray:
    """Greedy A-optimal design under the Gaussian method: k columns of `pool`, sorted.

    Probing column j takes |C F c|^2 / (c^T C c + d) off the summed posterior variance, C being
    the posterior covariance of the M + 2 directions, F their outer products summed over all
    columns, c the column's features and d its noise: O(M^2) a column and step.
    """
    method = Gaussian()
    total = gram(rows)
    prior, noise = method.parts(total)
    factor = Model(method, total, sample(rows)).choice(k)
    features = prior.basis @ with_ones(rows[:, pool])
    variance = factor * noise.variance(rows[:, pool])
    spread = prior.basis @ total @ prior.basis.T
    return np.sort(pool[greedy(features, variance, spread, k)])


def greedy(features: np.ndarray, variance: np.ndarray, spread: np.ndarray, k: int) -> np.ndarray:
    """Places (k,) of the columns that one after another take most off the summed variance.

    `features` (q, n) of the columns to choose from, their noise `variance` (n,), and `spread`
    (q, q), the sum over all columns of the outer products of their features.
    """
    posterior = np.eye(len(features))
    chosen: list[int] = []
    for _ in range(k):
        moved = posterior @ features
        gain = np.einsum("in,in->n", moved, spread @ moved)
        gain /= np.einsum("in,in->n", features, moved) + variance
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        taken = moved[:, best]
        posterior -= np.outer(taken, taken) / (features[:, best] @ taken + variance[best])
    return np.array(chosen, dtype=int)


def probe_curve(
    train: np.ndarray,
    ks: Sequence[int],
    method: str = "random",
    *,
    seeds: Sequence[int] = range(3),
    domains: Sequence[str] | None = None,
    options: Mapping | None = None,
) -> dict[int, float]:
    """RMSE expected of an unseen task by number of probes, from the training rows alone.

    Every training row is left out in turn. Probes are chosen in one half of the columns, without
    the left-out row, and scored in the other half, so that chosen and random probes compare
    fairly.

    Raises
    ------
    ValueError
        If there are under three training rows, or a k is over half the columns.
    """
    rows = np.asarray(train, dtype=np.float64)
    tasks, examples = rows.shape
    if tasks < 3:
        raise ValueError(f"{tasks} training tasks; a curve of error needs at least 3")
    errors: dict[int, list[float]] = {k: [] for k in ks}
    for row in range(tasks):
        others, truth = np.delete(rows, row, axis=0), rows[row]
        fitted = Gaussian(**(options or {})).fit(others)
        for seed in seeds:
            half = half_of(examples, seed)
            scored = ~half & np.isfinite(truth)
            for k in ks:
                index = choose_probes(
                    others, k, method, seed=seed, domains=domains, allowed=half & np.isfinite(truth)
                )
                missed = fitted.predict(index, truth[index])[scored] - truth[scored]
                errors[k].append(float(np.square(missed).mean()))
    return {k: float(np.sqrt(np.mean(line))) for k, line in errors.items()}


def half_of(examples: int, seed: int) -> np.ndarray:
    """Mask (N,) of a random half of the columns: probes come from it, scores from the other."""
    half = np.zeros(examples, dtype=bool)
    half[np.random.default_rng([seed, 31]).permutation(examples)[: examples // 2]] = True
    return half


def probes_needed(curve: Mapping[int, float], wanted: float) -> int | None:
    """The fewest probes whose error is at most `wanted`, between measured ks; None: too few.

    Interpolates error against log k, which is close to a line; never beyond the ks measured.
    """
    ks = sorted(curve)
    best = np.minimum.accumulate([curve[k] for k in ks])
    if best[-1] > wanted:
        return None
    place = int(np.argmax(best <= wanted))
    if place == 0:
        return ks[0]
    share = (best[place - 1] - wanted) / (best[place - 1] - best[place])
    low, high = np.log(ks[place - 1]), np.log(ks[place])
    return int(np.ceil(np.exp(low + share * (high - low)) - 1e-9))
