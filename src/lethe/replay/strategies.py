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


def draw(logits: np.ndarray, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Draws indices (count,) without replacement, in proportion to softmax(logits).

    Gumbel-top-k: the same as drawing one after the other and renormalising, but on logits (n,),
    which do not underflow as weights do. Examples whose logit is not finite are never drawn; more
    draws than examples start over with all of them.
    """
    rng = np.random.default_rng([*np.atleast_1d(seed), 7])
    possible = np.isfinite(logits)
    if count and not possible.any():
        raise LetheError("replay: no replayable example has a score")
    drawn: list[int] = []
    while len(drawn) < count:
        perturbed = np.where(possible, logits, -np.inf) + rng.gumbel(size=len(logits))
        order = np.argsort(-perturbed, kind="stable")
        drawn += [int(i) for i in order if possible[i]][: count - len(drawn)]
    return np.array(drawn, dtype=int)


def draws(new_examples: int, ratio: float) -> int:
    """How many upstream examples are replayed beside this many new-task examples."""
    return max(1, round(new_examples * ratio))


def choose(
    upstream: Sequence[UpstreamExample],
    scores: Mapping[str, float] | None,
    count: int,
    temperature: float,
    seed: int | Sequence[int],
) -> tuple[list[UpstreamExample], float]:
    """Draws `count` replayable examples in proportion to softmax(score / temperature).

    Parameters
    ----------
    scores
        Forgetting in nats, predicted or true, by example_id; none: all weigh the same.

    Returns
    -------
    The examples, and the effective sample size of their weights.

    Raises
    ------
    LetheError
        If no replayable example has a score, or one is missing in `scores`.
    """
    pool = [example for example in upstream if example.split == "replayable"]
    if scores is not None and (lacking := [e for e in pool if e.example_id not in scores]):
        raise LetheError(f"replay: no score for {lacking[0].example_id!r}; predict again")
    known = np.array([0.0 if scores is None else scores[e.example_id] for e in pool])
    probabilities = weights(known, temperature)
    drawn = draw(known / temperature, count, seed)
    return [pool[i] for i in drawn], effective_sample_size(probabilities)
