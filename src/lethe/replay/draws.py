"""From a score per example to the examples that are replayed: weights, temperature and draw."""

from collections.abc import Sequence

import numpy as np

from lethe.config.replay_settings import (
    Temperature,
    TemperatureBySampleSize,
    TemperatureBySpread,
)
from lethe.errors import LetheError

# The golden ratio less 1. Its multiples modulo 1 are spread evenly, however many they are.
_GOLDEN = (5**0.5 - 1) / 2
# Above this share of the pool, weighted replay hardly differs from random replay.
RANDOM_SHARE = 0.9


def count_replayed(new_examples: int, ratio: float) -> int:
    """Number of upstream examples that are replayed beside this many new-task examples."""
    return max(1, round(new_examples * ratio))


def check_scored(scores: np.ndarray) -> None:
    """Raises LetheError if none of the scores (n,) is finite."""
    if not np.isfinite(scores).any():
        raise LetheError("replay: no replayable example has a score")


def softmax_weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Weights (n,) of the replayable examples: softmax of scores (n,) / temperature.

    The formula is that of the paper, section 4. A score that is not finite gets weight 0, because
    an example that could not be measured is never replayed on purpose.

    Raises
    ------
    LetheError
        If no score is finite.
    """
    check_scored(scores)
    finite = np.isfinite(scores)
    logits = (scores - np.max(scores[finite])) / temperature
    exponentials = np.exp(np.where(finite, logits, -np.inf))
    return exponentials / exponentials.sum()


def effective_sample_size(weights: np.ndarray) -> float:
    """1 / sum of squared weights (n,).

    Near the number of draws it means that the top examples are replayed, near n that the draw is
    random.
    """
    return float(1 / np.square(weights).sum())


def temperature_in_nats(temperature: Temperature, scores: np.ndarray, count: int) -> float:
    """The temperature of one task in the unit of its scores (n,).

    Parameters
    ----------
    temperature
        A number is returned unchanged. `sd` times the standard deviation of the finite scores.
        For `effective_share`, the temperature whose weights have an effective sample size of this
        share times `count`. It is infinite if that is the whole pool or more, or if all scores
        are equal: the draw is random then.
    count
        Number of draws.

    Raises
    ------
    LetheError
        If no score is finite.
    """
    if not isinstance(temperature, TemperatureBySpread | TemperatureBySampleSize):
        return float(temperature)
    check_scored(scores)
    finite = scores[np.isfinite(scores)]
    # The standard deviation of equal numbers is often a little above 0.
    if finite.min() == finite.max():
        return float("inf")
    spread = float(finite.std())
    if isinstance(temperature, TemperatureBySpread):
        return temperature.sd * spread
    return _temperature_of_size(finite, spread, temperature.effective_share * count)


def _temperature_of_size(scores: np.ndarray, spread: float, size: float) -> float:
    """Temperature whose weights of finite scores (n,) have this effective sample size."""
    if size >= len(scores):
        return float("inf")
    # Below the smallest temperature the largest scores alone have weight: no smaller size exists.
    low = 1e-4 * spread
    if effective_sample_size(softmax_weights(scores, low)) >= size:
        return low
    high = low
    while effective_sample_size(softmax_weights(scores, high)) < size:
        high *= 2
        if high > 1e9 * spread:
            return float("inf")
    # The effective sample size grows with the temperature, so bisection finds the one.
    for _ in range(60):
        middle = (low + high) / 2
        if effective_sample_size(softmax_weights(scores, middle)) < size:
            low = middle
        else:
            high = middle
    return high


def draw_softmax(logits: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draws indices (count,) without replacement, in proportion to softmax(logits).

    This is the Gumbel-top-k trick. It equals drawing one example after the other with renormalised
    weights, but works on logits (n,), which do not underflow as weights do. Examples whose logit
    is not finite are never drawn. More draws than examples start over with all of them.

    Raises
    ------
    LetheError
        If no logit is finite.
    """
    rng = _generator(seed)
    if count:
        check_scored(logits)
    possible = np.isfinite(logits)
    indices: list[int] = []
    while len(indices) < count:
        perturbed = np.where(possible, logits, -np.inf) + rng.gumbel(size=len(logits))
        order = np.argsort(-perturbed, kind="stable")
        indices += [int(i) for i in order if possible[i]][: count - len(indices)]
    return np.array(indices, dtype=int)


def draw_top(scores: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Indices (count,) of the highest scores (n,), the highest first.

    The seed orders examples of equal score. Scores that are not finite are never drawn. More draws
    than examples start over with the highest.

    Raises
    ------
    LetheError
        If no score is finite.
    """
    if count:
        check_scored(scores)
    order = _generator(seed).permutation(len(scores))
    order = order[np.isfinite(scores[order])]
    ranked = order[np.argsort(-scores[order], kind="stable")]
    return np.resize(ranked, count) if count else ranked[:0]


def indices_by_domain(domains: np.ndarray) -> list[np.ndarray]:
    """Indices of the examples of each domain, in the order of the pool; one array per domain.

    Domains come in alphabetical order. Every example is looked at once, however many domains
    there are.
    """
    numbers: dict[str, list[int]] = {}
    for number, domain in enumerate(domains.tolist()):
        numbers.setdefault(domain, []).append(number)
    return [np.array(numbers[domain]) for domain in sorted(numbers)]


def draw_balanced(domains: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draws indices (count,), the same number from every domain, at random within each.

    A domain whose examples are used up gives no more until all are; then all start over.

    Parameters
    ----------
    domains
        Domain (n,) of each example.
    """
    order = draw_softmax(np.zeros(len(domains)), len(domains), seed)
    turns = np.zeros(len(order), dtype=int)
    for members in indices_by_domain(domains[order]):
        turns[members] = np.arange(len(members))
    # Stable: within one turn, the domains come in the order of the random draw.
    ranked = order[np.argsort(turns, kind="stable")]
    return np.resize(ranked, count)


def expected_draws(sizes: np.ndarray, count: int) -> np.ndarray:
    """How often each of n examples is drawn on average, if `count` are drawn in all.

    Parameters
    ----------
    sizes
        Sizes (n,) above 0. Draws are in proportion to them, up to one draw of each example. Of
        more draws than examples, each example first gets as many as all can have.
    """
    rounds, rest = divmod(count, len(sizes))
    expected = rest * sizes / sizes.sum()
    while (expected > 1).any():
        certain = expected >= 1
        expected[certain] = 1
        expected[~certain] *= (rest - certain.sum()) / expected[~certain].sum()
    return rounds + expected


def draw_systematic(
    expected: np.ndarray, scores: np.ndarray, domains: np.ndarray, seed: int | Sequence[int]
) -> np.ndarray:
    """Draws each example as often as expected, rounded up or down, evenly over domains and scores.

    Systematic sampling (Madow 1949, Annals of Mathematical Statistics 20): the examples stand in a
    line, ordered by domain and then by score, each as long as its expected number of draws. Points
    at distance 1 with a random start choose them. So each stretch of the line gives as many draws
    as expected, up to one. The draws come in an order that spreads each stretch over time.

    Parameters
    ----------
    expected
        Expected draws (n,); their sum is the number of draws (`expected_draws`).
    scores, domains
        Score (n,) and domain (n,) of each example.

    Returns
    -------
    Indices of the examples in the order of the draws.
    """
    rng = _generator(seed)
    line = np.lexsort((rng.random(len(expected)), scores, domains))
    ends = np.cumsum(expected[line])
    points = rng.random() + np.arange(round(float(ends[-1])))
    # Rounding may leave the last point behind the end.
    places = np.minimum(np.searchsorted(ends, points, side="right"), len(line) - 1)
    # Neighbours in a sequence of this step are far apart in the line, and every part is even.
    order = np.argsort((np.arange(len(places)) * _GOLDEN + rng.random()) % 1, kind="stable")
    return line[places[order]]


def _generator(seed: int | Sequence[int]) -> np.random.Generator:
    return np.random.default_rng([*np.atleast_1d(seed), 7])
