"""Completion of a Z of any size: fold-in methods of `lethe.completion`, training rows on disk.

Predictions of those methods are weights on the training rows and a row of ones, and choosing
their hyper-parameters needs no more than the Gram matrix of the two and a sample of columns
(`lethe.completion.foldin`). So one pass over the file fits and another predicts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lethe.completion.foldin import FoldIn, Model, sample, with_ones
from lethe.completion.probes import greedy
from lethe.matrix import moments
from lethe.matrix.streams import Stream

IN_CACHE = 4096  # columns that are turned into float64 at a time


class RowEffects:
    """Task effects of the additive fit z_ij ~ mean + task_i + example_j over known cells.

    Example effects are means off the task effects, which leaves M normal equations; examples
    that every task knows enter them through their moments, the others are added one chunk after
    another. What dense completion fills unknown cells with, in one pass.
    """

    def __init__(self, tasks: int):
        self.system = np.zeros((tasks, tasks))
        self.right = np.zeros(tasks)
        self.cells, self.total = np.zeros(tasks), 0.0

    def add(self, columns: np.ndarray) -> None:
        """Takes in columns (M, n) with unknown cells."""
        known = np.isfinite(columns)
        mask, counts = known.astype(float), np.maximum(known.sum(axis=0), 1)
        z = np.where(known, columns, 0.0).astype(np.float64)
        self.system += np.diag(mask.sum(axis=1)) - (mask / counts) @ mask.T
        self.right += np.where(known, z - z.sum(axis=0) / counts, 0.0).sum(axis=1)
        self.cells += mask.sum(axis=1)
        self.total += z.sum()

    def solve(self, complete: moments.Moments) -> "Filling":
        """The fit over all columns, `complete` being the moments of those without a gap."""
        tasks, count, means = len(self.right), complete.count, complete.means
        system = self.system + count * (np.eye(tasks) - 1 / tasks)
        effects = np.linalg.pinv(system, hermitian=True) @ (
            self.right + count * (means - means.mean())
        )
        cells = self.cells + count
        mean = (self.total + count * means.sum()) / cells.sum()
        # Effects are known up to a constant: they sum to zero over known cells.
        return Filling(mean, effects - cells @ effects / cells.sum())


@dataclass(frozen=True)
class Filling:
    """Fills unknown cells with mean + task effect (M,) + example effect."""

    mean: float
    effects: np.ndarray

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Columns (M, n), their unknown cells at the fit."""
        known = np.isfinite(columns)
        if known.all():
            return columns
        counts = known.sum(axis=0)
        off = np.where(known, columns - self.mean - self.effects[:, None], 0.0).sum(axis=0)
        fit = self.mean + self.effects[:, None] + off / np.maximum(counts, 1)
        return np.where(known, columns, fit)


class Completion:
    """A fold-in method of `lethe.completion` fitted to training rows on disk.

    One pass gathers the Gram matrix and the columns that hyper-parameters are chosen on (two if
    Z has gaps), another predicts. Nothing in memory is as long as a row.

    Parameters
    ----------
    method
        An instance of a fold-in method, `Gaussian()` say.
    train
        The training tasks' columns of Z.
    """

    def __init__(self, method: FoldIn, train: Stream):
        self.train = train
        # The columns that are looked at one by one, all of a small Z.
        self.drawn = sample(np.arange(train.examples)[None])[0]
        z, gaps, columns = _gathered(train, self.drawn)
        # Without gaps there is nothing to look for in every chunk.
        self.filling = gaps.solve(z) if z.dropped else np.asarray
        if z.dropped:
            z = moments.moments(self.filling(_seen(chunk)) for chunk in train)
        seen = np.isfinite(columns).any(axis=0)
        self.drawn, columns = self.drawn[seen], columns[:, seen]
        known = np.isfinite(columns)
        self.model = Model(method, _with_ones(z), self.filling(columns), known=known)

    def predictions(self, index: np.ndarray, values: np.ndarray) -> Iterator[np.ndarray]:
        """Predicted rows (R, n), chunk by chunk, from values (R, k) probed at k examples.

        Every value must be known; probes of one task are a matrix of one row.
        """
        probed = np.asarray(self.filling(self.train.take(index)), dtype=np.float64)
        weights = self.model.weights(probed, np.asarray(values, dtype=np.float64))
        for chunk in self.train:
            for part in moments.slices(self.filling(chunk), IN_CACHE):
                yield weights[:, :-1] @ part + weights[:, -1:]

    def predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predicted rows (R, N) in one array; as `predictions`."""
        return np.concatenate(list(self.predictions(index, values)), axis=1)


def _seen(chunk: np.ndarray) -> np.ndarray:
    """The columns that a training row knows: others say nothing of how rows go together."""
    return chunk[:, np.isfinite(chunk).any(axis=0)]


def _gathered(chunks: Stream, drawn: np.ndarray) -> tuple[moments.Moments, RowEffects, np.ndarray]:
    """In one pass: moments, the columns with gaps, and the columns drawn, sorted (M, n)."""
    total, gaps, columns, start = None, RowEffects(len(chunks.tasks)), [], 0
    for chunk in chunks:
        found = moments.moments_of(chunk)
        if found.dropped:
            gaps.add(chunk[:, ~np.isfinite(chunk).all(axis=0)])
        total = found if total is None else total + found
        end = start + chunk.shape[1]
        here = drawn[np.searchsorted(drawn, start) : np.searchsorted(drawn, end)]
        columns.append(chunk[:, here - start])
        start = end
    return total, gaps, np.concatenate(columns, axis=1)


def _with_ones(z: moments.Moments) -> np.ndarray:
    """Gram matrix (M + 1, M + 1) of [Z; 1]."""
    sums = z.count * z.means
    return np.block([[z.gram, sums[:, None]], [sums[None], np.array([[float(z.count)]])]])


def probe_scores(fitted: Completion, probes: int) -> np.ndarray:
    """What each example would tell about all others if it were probed first (N,), in nats^2.

    The summed posterior variance that one probe takes off under the Gaussian method (the first
    step of `lethe.completion.probes.a_optimal`), with the noise factor chosen for this many
    probes. 0 for an example that no training task knows.
    """
    prior, noise = fitted.model.parts
    factor, basis = fitted.model.choice(probes), prior.basis
    spread = basis @ fitted.model.total @ basis.T
    scores = []
    for chunk in fitted.train:
        for part in moments.slices(chunk, IN_CACHE):
            columns = np.asarray(fitted.filling(part), dtype=np.float64)
            features = basis @ with_ones(columns)
            told = np.einsum("in,in->n", features, spread @ features)
            size = np.square(features).sum(axis=0) + factor * noise.variance(columns)
            scores.append(np.where(np.isfinite(part).any(axis=0), told / size, 0.0))
    return np.concatenate(scores)


def choose_probes(fitted: Completion, k: int) -> np.ndarray:
    """Greedy A-optimal probes under the Gaussian method: numbers of k examples, sorted.

    What they tell is summed over all examples; chosen from are the 2,000 at most that were drawn
    when the method was fitted, so that no pass over the file is needed. Of a smaller Z these are
    all, and the probes those of `lethe.completion.probes.a_optimal`.

    Raises
    ------
    ValueError
        If fewer than k examples were drawn that a training task knows.
    """
    if k > len(fitted.drawn):
        raise ValueError(
            f"{k} probes wanted, {len(fitted.drawn)} examples were drawn that a task knows"
        )
    model = fitted.model
    prior, noise = model.parts
    features = prior.basis @ model.sample
    variance = model.choice(k) * noise.variance(model.sample[:-1])
    spread = prior.basis @ model.total @ prior.basis.T
    return np.sort(fitted.drawn[greedy(features, variance, spread, k)])
