"""Which examples to probe."""

import numpy as np


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
    pool = np.arange(examples) if allowed is None else np.flatnonzero(allowed)
    if count > len(pool):
        raise ValueError(f"{count} probes wanted, {len(pool)} examples may be probed")
    return np.sort(np.random.default_rng([seed, 17]).choice(pool, count, replace=False))
