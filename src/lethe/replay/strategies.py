"""From forgetting, predicted or true, to the upstream examples that are replayed."""

from collections.abc import Mapping, Sequence

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError


def weights(scores: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(scores / temperature) (n,) over the replayable examples (protocol: paper, sec. 4).

    NaN scores get weight 0: what could not be measured is never replayed on purpose.
    """
    known = np.isfinite(scores)
    if not known.any():
        raise LetheError("replay: no replayable example has a score")
    shifted = np.where(known, scores - np.max(scores[known]), -np.inf) / temperature
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum()


def effective_sample_size(probabilities: np.ndarray) -> float:
    """1 / sum of squares: near the draws it is top-k in disguise, near n it is random."""
    return float(1 / np.square(probabilities).sum())


def draw(probabilities: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draws indices (count,) without replacement, in proportion to the probabilities.

    Gumbel-top-k: the same as drawing one after the other and renormalising, but it does not fail
    when most weights underflow. More draws than examples start over with all of them.
    """
    rng = np.random.default_rng([seed, 7])
    # log 0 is -inf: examples of weight 0 come last, and only if nothing else is left.
    with np.errstate(divide="ignore"):
        logs = np.log(probabilities)
    drawn: list[int] = []
    while len(drawn) < count:
        order = np.argsort(-(logs + rng.gumbel(size=len(logs))), kind="stable")
        drawn += [int(i) for i in order if probabilities[i] > 0][: count - len(drawn)]
    return np.array(drawn, dtype=int)


def draws(new_examples: int, ratio: float) -> int:
    """How many upstream examples are replayed beside this many new-task examples."""
    return max(1, round(new_examples * ratio))


def choose(
    upstream: Sequence[UpstreamExample],
    scores: Mapping[str, float] | None,
    count: int,
    temperature: float,
    seed: int,
) -> tuple[list[UpstreamExample], float]:
    """Draws `count` replayable examples in proportion to softmax(score / temperature).

    Parameters
    ----------
    scores
        Forgetting in nats, predicted or true, by example_id; none: all weigh the same.

    Returns
    -------
    The examples, and the effective sample size of their weights.
    """
    pool = [example for example in upstream if example.split == "replayable"]
    known = np.array([0.0 if scores is None else scores[e.example_id] for e in pool])
    probabilities = weights(known, temperature)
    drawn = draw(probabilities, count, seed)
    return [pool[i] for i in drawn], effective_sample_size(probabilities)
