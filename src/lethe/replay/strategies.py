"""From forgetting, predicted or true, to the upstream examples that are replayed."""

import numpy as np

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
