"""Intervals of a mean over tasks and held-out examples at once."""

import numpy as np

from lethe.statistics import DRAWS, tail

# Resampled means that are computed at once; bounds the memory.
_CHUNK = 500


def two_level_interval(
    values: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of the mean over tasks, seeds and held-out examples.

    The same held-out examples are measured for every task, so tasks and examples are crossed:
    both are resampled, independently of each other (the pigeonhole bootstrap of Owen 2007, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1(2)). Seeds are resampled within each
    task. Percentiles are those of `lethe.statistics.tail` for the number of tasks.

    Parameters
    ----------
    values
        Differences or forgetting (tasks, seeds, examples) in nats; NaN where it is unknown.

    Returns
    -------
    Lower and upper bound; NaN with fewer than two tasks or two examples.
    """
    values = values[np.isfinite(values).any(axis=(1, 2))]
    values = values[:, :, np.isfinite(values).any(axis=(0, 1))]
    tasks, seeds, examples = values.shape
    if tasks < 2 or examples < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng([seed, 41])
    is_measured = np.isfinite(values).astype(float).reshape(tasks * seeds, examples)
    filled = np.nan_to_num(values).reshape(tasks * seeds, examples)
    means = []
    for _ in range(DRAWS // _CHUNK):
        by_run = _weights_of_runs(rng, tasks, seeds)
        by_example = rng.multinomial(examples, np.full(examples, 1 / examples), _CHUNK)
        total = ((by_run @ filled) * by_example).sum(axis=1)
        count = ((by_run @ is_measured) * by_example).sum(axis=1)
        means.append(np.divide(total, count, out=np.full(_CHUNK, np.nan), where=count > 0))
    cut = tail(tasks, level)
    low, high = np.nanquantile(np.concatenate(means), [cut, 1 - cut])
    return float(low), float(high)


def _weights_of_runs(rng: np.random.Generator, tasks: int, seeds: int) -> np.ndarray:
    """Counts (_CHUNK, tasks x seeds): tasks are resampled, and the seeds of each task."""
    of_task = rng.multinomial(tasks, np.full(tasks, 1 / tasks), _CHUNK)
    if seeds == 1:
        return of_task.astype(float)
    of_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), (_CHUNK, tasks))
    return (of_task[:, :, None] * of_seed).reshape(_CHUNK, tasks * seeds).astype(float)
