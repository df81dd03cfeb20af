"""Moments of Z: sums over its examples, added up chunk by chunk, so memory does not grow with N."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

# Examples per chunk. It divides the row groups that `forgetting_matrix.write_matrix` makes.
CHUNK = 32_768


@dataclass(frozen=True)
class Moments:
    """Sums over the complete examples, which are those measured for every task.

    `count` is the number of complete examples and `dropped` that of the others. `means` (M,) are
    the tasks' means in nats, and `scatter` (M, M) is the sum over examples of
    (z - means)(z - means)^T. Both are float64.
    """

    count: int
    dropped: int
    means: np.ndarray
    scatter: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        """Z Z^T (M, M), uncentred."""
        return self.scatter + self.count * np.outer(self.means, self.means)

    @property
    def column_centred(self) -> np.ndarray:
        """X X^T (M, M), where X is Z minus each example's mean over tasks."""
        spread = self.means - self.means.mean()
        return centre_gram(self.scatter) + self.count * np.outer(spread, spread)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of examples (Chan, Golub and LeVeque 1983).

        The formula stays exact when the mean of Z is much larger than its spread.
        """
        count = self.count + other.count
        share = other.count / max(count, 1)
        shift = other.means - self.means
        between = np.outer(shift, shift) * (self.count * share)
        scatter = self.scatter + other.scatter + between
        dropped = self.dropped + other.dropped
        means = self.means + shift * share
        return Moments(count=count, dropped=dropped, means=means, scatter=scatter)


def compute_moments(chunks: Iterable[np.ndarray]) -> Moments:
    """Adds up the moments of chunks (M, n) of Z in one pass, in float64.

    Raises
    ------
    ValueError
        If there is no chunk.
    """
    total = None
    for chunk in chunks:
        part = chunk_moments(chunk)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("Z has no examples")
    return total


def chunk_moments(chunk: np.ndarray) -> Moments:
    """Moments of one chunk (M, n)."""
    z = np.array(chunk, dtype=np.float64)
    dropped = 0
    means = z.mean(axis=1) if z.size else np.zeros(len(z))
    if not np.isfinite(means).all():
        # The mean of a task is not finite if a cell is missing. Only then is every cell checked.
        complete = np.isfinite(z).all(axis=0)
        z = z[:, complete]
        dropped = int((~complete).sum())
        means = z.mean(axis=1) if z.size else np.zeros(len(z))
    z -= means[:, None]
    return Moments(count=z.shape[1], dropped=dropped, means=means, scatter=z @ z.T)


def column_slices(values: np.ndarray, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Cuts a Z in memory (M, N) into chunks (M, n)."""
    for start in range(0, max(values.shape[1], 1), chunk):
        yield values[:, start : start + chunk]


def centre_gram(gram: np.ndarray) -> np.ndarray:
    """Gram matrix of the rows minus their mean row, from the Gram matrix of the rows."""
    centred = gram - gram.mean(axis=0)
    return centred - centred.mean(axis=1, keepdims=True)
