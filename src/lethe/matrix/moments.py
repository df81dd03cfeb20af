"""Moments of Z: sums over its examples, gathered chunk by chunk, so N never costs memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

CHUNK = 32_768  # examples at a time; divides the row groups that forgetting_matrix.write makes


@dataclass(frozen=True)
class Moments:
    """Sums over the examples that every task knows.

    `count` examples, `dropped` others (a NaN in some task), `means` (M,) of the tasks in nats and
    `scatter` (M, M) = sum over examples of (z - means)(z - means)^T, all float64.
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
        """X X^T (M, M) of Z with each example's mean over tasks taken off."""
        spread = self.means - self.means.mean()
        return off_means(self.scatter) + self.count * np.outer(spread, spread)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets of examples (Chan, Golub and LeVeque 1983).

        Nothing cancels when the mean of Z is large beside its spread.
        """
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.means - self.means
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * share)
        dropped = self.dropped + other.dropped
        return Moments(count, dropped, self.means + apart * share, scatter)


def moments(chunks: Iterable[np.ndarray]) -> Moments:
    """Gathers moments of chunks (M, n) of Z in one pass, float64 throughout.

    Raises
    ------
    ValueError
        If there is no chunk.
    """
    total = None
    for chunk in chunks:
        found = moments_of(chunk)
        total = found if total is None else total + found
    if total is None:
        raise ValueError("Z has no examples")
    return total


def moments_of(chunk: np.ndarray) -> Moments:
    """Moments of one chunk (M, n)."""
    z, dropped = np.array(chunk, dtype=np.float64), 0
    means = z.mean(axis=1) if z.size else np.zeros(len(z))
    if not np.isfinite(means).all():
        # A task with a gap has no mean: cells need to be looked at only then.
        known = np.isfinite(z).all(axis=0)
        z, dropped = z[:, known], int((~known).sum())
        means = z.mean(axis=1) if z.size else np.zeros(len(z))
    z -= means[:, None]
    return Moments(z.shape[1], dropped, means, z @ z.T)


def slices(values: np.ndarray, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Z in memory (M, N) as chunks (M, n)."""
    for start in range(0, max(values.shape[1], 1), chunk):
        yield values[:, start : start + chunk]


def off_means(gram: np.ndarray) -> np.ndarray:
    """Gram matrix of rows off their mean over tasks, from that of the rows."""
    off = gram - gram.mean(axis=0)
    return off - off.mean(axis=1, keepdims=True)
