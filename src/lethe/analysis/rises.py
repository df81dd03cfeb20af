"""What a fine-tune did to the held-out examples: rise, drift and the domain that suffers most.

The mean rise in loss answers "has the model got worse at these texts?". Rises and falls cancel in
it. Two more numbers complete it: the rises alone ("how many texts got worse, and by how
much?") and the mean absolute change ("is it still the same model on these texts?").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

# Rises below this many standard deviations between seeds may be chance.
FLOOR_IN_DEVIATIONS = 2.0


@dataclass(frozen=True)
class RunKey:
    """Identifies one run of a model: how it was trained, on which task or order, which seed."""

    strategy: str
    task: str
    seed: int


def describe_rises(
    forgetting: np.ndarray, domains: Sequence[str], noise_floor: float
) -> dict[str, Any]:
    """Columns of replay.csv and sequence_steps.csv about the change of each held-out example.

    Parameters
    ----------
    forgetting
        Rise in loss (n,) of the held-out examples, nats per token; NaN where it was not measured.
    domains
        Their domains (n,).
    noise_floor
        Nats. Only larger rises count as rises.

    Returns
    -------
    `worst_domain` and its mean `worst_domain_forgetting`; `rise_share`, the share of examples
    that rise by more than the noise floor, and `rise_mean`, their mean rise (NaN if none does);
    `drift`, the mean absolute change. `worst_domain` is a name and `rise_share` a share; the others
    are in nats.
    """
    measured = np.isfinite(forgetting)
    values = np.asarray(forgetting, dtype=float)[measured]
    means = _mean_by_domain(values, np.asarray(domains)[measured])
    worst = max(means, key=means.__getitem__, default="")
    rises = values[values > noise_floor]
    return {
        "worst_domain": worst,
        "worst_domain_forgetting": means.get(worst, float("nan")),
        "rise_share": len(rises) / len(values) if len(values) else float("nan"),
        "rise_mean": float(rises.mean()) if len(rises) else float("nan"),
        "drift": float(np.abs(values).mean()) if len(values) else float("nan"),
    }


def _mean_by_domain(values: np.ndarray, domains: np.ndarray) -> dict[str, float]:
    """Mean of the values (n,) of each domain; domains in alphabetical order."""
    return {str(domain): float(values[domains == domain].mean()) for domain in np.unique(domains)}


def noise_floor_between_seeds(
    forgetting: Mapping[RunKey, np.ndarray], strategies: Sequence[str] = ("none", "random")
) -> float:
    """Twice the standard deviation of an example's forgetting between seeds of the same run.

    Seeds differ in the order of the task's examples and, with replay, in the draw.

    Parameters
    ----------
    forgetting
        Forgetting (n,) by run.
    strategies
        The first of these that has runs with several seeds is taken.

    Returns
    -------
    Nats; 0 if no run has two seeds, or if forgetting is counted in right answers, where every
    answer lost is a rise.
    """
    if all(np.isin(row[np.isfinite(row)], (-1, 0, 1)).all() for row in forgetting.values()):
        return 0.0
    for strategy in strategies:
        repeats = _runs_that_differ_in_seed(key for key in forgetting if key.strategy == strategy)
        squares, freedom = 0.0, 0
        for keys in repeats:
            rows = np.stack([forgetting[key] for key in keys])
            rows = rows[:, np.isfinite(rows).all(axis=0)]
            squares += float(np.square(rows - rows.mean(axis=0)).sum())
            freedom += (len(rows) - 1) * rows.shape[1]
        if freedom:
            return FLOOR_IN_DEVIATIONS * float(np.sqrt(squares / freedom))
    return 0.0


def _runs_that_differ_in_seed(keys: Iterable[RunKey]) -> list[list[RunKey]]:
    """Groups of at least two runs that differ in the seed only."""
    ordered = sorted(keys, key=lambda key: (key.task, key.seed))
    groups = [list(group) for _, group in groupby(ordered, key=lambda key: key.task)]
    return [group for group in groups if len(group) > 1]
