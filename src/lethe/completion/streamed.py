"""Completion of a Z of any size: fold-in methods of `lethe.completion`, training rows on disk.

Predictions of those methods are weights on the training rows and a row of ones, and choosing
their hyper-parameters needs no more than the Gram matrix of the two and a sample of columns
(`lethe.completion.foldin`). So one pass over the file fits and another predicts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lethe.completion.foldin import FoldIn, FoldInModel, sample_columns, with_ones
from lethe.completion.probes import greedy_columns
from lethe.matrix import moments
from lethe.matrix.streams import Stream

FLOAT64_COLUMNS = 4096  # columns that are converted to float64 at a time, so that they fit a cache


class RowEffects:
    """Task effects of the additive fit z_ij ~ mean + task_i + example_j over known cells.

    Example effects are means after subtracting task effects, which leaves M normal equations.
    Complete examples enter them through their moments; the others are added chunk by chunk. The
    fit fills unknown cells as dense completion does, in one pass.
    """

    def __init__(self, tasks: int):
        self.system = np.zeros((tasks, tasks))
        self.right = np.zeros(tasks)
        self.cells = np.zeros(tasks)
        self.total = 0.0

    def add(self, columns: np.ndarray) -> None:
        """Adds columns (M, n) with unknown cells."""
        observed = np.isfinite(columns)
        mask = observed.astype(float)
        counts = np.maximum(observed.sum(axis=0), 1)
        z = np.where(observed, columns, 0.0).astype(np.float64)
        self.system += np.diag(mask.sum(axis=1)) - (mask / counts) @ mask.T
        self.right += np.where(observed, z - z.sum(axis=0) / counts, 0.0).sum(axis=1)
        self.cells += mask.sum(axis=1)
        self.total += z.sum()

    def solve(self, complete: moments.Moments) -> "Filling":
        """The fit over all columns; `complete` are the moments of the complete ones."""
        tasks = len(self.right)
        count = complete.count
        means = complete.means
        system = self.system + count * (np.eye(tasks) - 1 / tasks)
        right = self.right + count * (means - means.mean())
        effects = np.linalg.pinv(system, hermitian=True) @ right
        cells = self.cells + count
        mean = (self.total + count * means.sum()) / cells.sum()
        # Effects are known up to a constant: they sum to zero over known cells.
        return Filling(mean=mean, effects=effects - cells @ effects / cells.sum())


@dataclass(frozen=True)
class Filling:
    """Fills unknown cells with mean + task effect (M,) + example effect."""

    mean: float
    effects: np.ndarray

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Columns (M, n), their unknown cells at the fit."""
        observed = np.isfinite(columns)
        if observed.all():
            return columns
        counts = observed.sum(axis=0)
        residuals = np.where(observed, columns - self.mean - self.effects[:, None], 0.0)
        example_effects = residuals.sum(axis=0) / np.maximum(counts, 1)
        return np.where(observed, columns, self.mean + self.effects[:, None] + example_effects)


class StreamedCompletion:
    """A fold-in method of `lethe.completion` fitted to training rows on disk.

    One pass gathers the Gram matrix and the columns that hyper-parameters are chosen on (two if
    Z has gaps), another predicts. Nothing in memory is as long as a row.

    Parameters
    ----------
    method
        An instance of a fold-in method, `Gaussian()` say.
    train
        The training tasks' columns of Z.

    Attributes
    ----------
    sample_ : ndarray of int
        Numbers of the examples that hyper-parameters are chosen on, all of a small Z.
    model_ : FoldInModel
        Statistics of the training rows.
    filling_ : callable
        Fills unknown cells of columns (M, n).
    """

    def __init__(self, method: FoldIn, train: Stream):
        self.method = method
        self.train = train
        self.sample_ = sample_columns(np.arange(train.examples)[None])[0]
        complete, gaps, columns = _gather(train, self.sample_)
        # Without gaps no chunk needs to be searched for unknown cells.
        self.filling_ = np.asarray
        if complete.dropped:
            self.filling_ = gaps.solve(complete)
            complete = moments.compute_moments(
                self.filling_(_measured_columns(chunk)) for chunk in train
            )
        measured = np.isfinite(columns).any(axis=0)
        self.sample_ = self.sample_[measured]
        columns = columns[:, measured]
        self.model_ = FoldInModel(
            method,
            total=_gram_with_ones(complete),
            columns=self.filling_(columns),
            observed=np.isfinite(columns),
        )

    def __repr__(self) -> str:
        return f"StreamedCompletion(method={self.method!r}, train={self.train!r})"

    def predict_chunks(self, index: np.ndarray, values: np.ndarray) -> Iterator[np.ndarray]:
        """Predicted rows (R, n), chunk by chunk, from values (R, k) probed at k examples.

        Every value must be known. Probes of one task are a matrix of one row.
        """
        probed = np.asarray(self.filling_(self.train.take(index)), dtype=np.float64)
        weights = self.model_.weights(probed, np.asarray(values, dtype=np.float64))
        for chunk in self.train:
            for part in moments.column_slices(self.filling_(chunk), FLOAT64_COLUMNS):
                yield weights[:, :-1] @ part + weights[:, -1:]

    def predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predicted rows (R, N) in one array; arguments as in `predict_chunks`."""
        return np.concatenate(list(self.predict_chunks(index, values)), axis=1)


def _measured_columns(chunk: np.ndarray) -> np.ndarray:
    """The columns with a measured cell; others say nothing about how rows agree."""
    return chunk[:, np.isfinite(chunk).any(axis=0)]


def _gather(train: Stream, sample: np.ndarray) -> tuple[moments.Moments, RowEffects, np.ndarray]:
    """In one pass: moments, effects from columns with gaps, and the sampled columns (M, n)."""
    total = None
    gaps = RowEffects(len(train.tasks))
    sampled = []
    start = 0
    for chunk in train:
        part = moments.chunk_moments(chunk)
        if part.dropped:
            gaps.add(chunk[:, ~np.isfinite(chunk).all(axis=0)])
        total = part if total is None else total + part
        end = start + chunk.shape[1]
        first, last = np.searchsorted(sample, [start, end])
        sampled.append(chunk[:, sample[first:last] - start])
        start = end
    return total, gaps, np.concatenate(sampled, axis=1)


def _gram_with_ones(z: moments.Moments) -> np.ndarray:
    """Gram matrix (M + 1, M + 1) of [Z; 1]."""
    sums = z.count * z.means
    return np.block([[z.gram, sums[:, None]], [sums[None], np.array([[float(z.count)]])]])


def probe_scores(fitted: StreamedCompletion, probes: int) -> np.ndarray:
    """How informative each example (N,) would be as the first probe, in nats^2.

    The score is the summed posterior variance that one probe removes under the Gaussian method
    (the first step of `lethe.completion.probes.a_optimal`), with the noise factor chosen for this
    many probes. It is 0 for an example that no training task knows.
    """
    prior, noise = fitted.model_.parts
    factor = fitted.model_.choose(probes)
    spread = prior.basis @ fitted.model_.total @ prior.basis.T
    scores = []
    for chunk in fitted.train:
        for part in moments.column_slices(chunk, FLOAT64_COLUMNS):
            columns = np.asarray(fitted.filling_(part), dtype=np.float64)
            features = prior.basis @ with_ones(columns)
            removed = np.einsum("in,in->n", features, spread @ features)
            variance = np.square(features).sum(axis=0) + factor * noise.variance(columns)
            measured = np.isfinite(part).any(axis=0)
            scores.append(np.where(measured, removed / variance, 0.0))
    return np.concatenate(scores)


def choose_streamed_probes(fitted: StreamedCompletion, k: int) -> np.ndarray:
    """Greedy A-optimal probes under the Gaussian method: numbers of k examples, sorted.

    Their information is summed over all examples. Candidates are the examples, at most 2,000,
    that were sampled when the method was fitted, so that no pass over the file is needed. For a
    smaller Z these are all examples, and the result equals `lethe.completion.probes.a_optimal`.

    Raises
    ------
    ValueError
        If fewer than k examples were sampled that a training task knows.
    """
    if k > len(fitted.sample_):
        raise ValueError(
            f"{k} probes wanted, {len(fitted.sample_)} examples were drawn that a task knows"
        )
    model = fitted.model_
    prior, noise = model.parts
    columns = greedy_columns(
        features=prior.basis @ model.sample,
        variance=model.choose(k) * noise.variance(model.sample[:-1]),
        spread=prior.basis @ model.total @ prior.basis.T,
        k=k,
    )
    return np.sort(fitted.sample_[columns])
