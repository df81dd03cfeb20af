"""Completion of a Z of any size: fold-in methods of `lethe.completion`, training rows on disk.

Predictions of those methods are weights on the training rows and a row of ones, and choosing
their hyper-parameters needs no more than the Gram matrix of the two and a sample of columns
(`lethe.completion.foldin`). So one pass over the file fits and another predicts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np

from lethe.completion.foldin import FoldIn, FoldInModel, sample_columns, with_ones
from lethe.completion.probes import greedy_columns
from lethe.completion.sibling import SiblingModel, new_deviations
from lethe.errors import LetheError
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
        # A constant added to all effects changes nothing, so one eigenvalue is 0. Rounding makes it
        # about 1e-15 of the largest, which numpy's own cutoff does not always catch.
        effects = np.linalg.pinv(system, rcond=1e-10, hermitian=True) @ right
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
    other
        Columns of another model's Z on the same examples (`lethe.completion.sibling`). Its tasks
        are matched by name. It may lack some of the training tasks, and others are ignored.

    Raises
    ------
    LetheError
        If `other` has other examples or none of the training tasks.

    Attributes
    ----------
    sample_ : ndarray of int
        Numbers of the examples that hyper-parameters are chosen on, all of a small Z.
    model_ : FoldInModel
        Statistics of the training rows.
    filling_ : callable
        Fills unknown cells of columns (M, n).
    """

    def __init__(self, method: FoldIn, train: Stream, other: Stream | None = None):
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

        self._other = None
        if other is not None:
            self._other = _StreamedSibling(self, other, observed=self.model_.observed)

    def __repr__(self) -> str:
        return f"StreamedCompletion(method={self.method!r}, train={self.train!r})"

    def predict_chunks(
        self, index: np.ndarray, values: np.ndarray, other: Stream | None = None
    ) -> Iterator[np.ndarray]:
        """Predicted rows (R, n), chunk by chunk, from values (R, k) probed at k examples.

        Every value must be known. Probes of one task are a matrix of one row.

        Parameters
        ----------
        other
            Columns of the other model's Z, one for each predicted row, in order.

        Raises
        ------
        LetheError
            If `other` is given but was not at the fit, or has another number of rows or examples.
        """
        values = np.asarray(values, dtype=np.float64)
        if other is not None:
            if self._other is None:
                raise LetheError(
                    f"{other.path}: rows of another model were passed, but not at the fit; use "
                    "StreamedCompletion(method, train, other=...)"
                )
            yield from self._other.predict_chunks(index, values, new=other)
            return
        probed = np.asarray(self.filling_(self.train.take(index)), dtype=np.float64)
        weights = self.model_.weights(probed, values)
        for chunk in self.train:
            for part in moments.column_slices(self.filling_(chunk), FLOAT64_COLUMNS):
                yield weights[:, :-1] @ part + weights[:, -1:]

    def predict(
        self, index: np.ndarray, values: np.ndarray, other: Stream | None = None
    ) -> np.ndarray:
        """Predicted rows (R, N) in one array; arguments as in `predict_chunks`."""
        return np.concatenate(list(self.predict_chunks(index, values, other)), axis=1)


class _StreamedSibling:
    """Another model's rows beside a streamed Z: two more passes gather what differences need."""

    def __init__(self, fitted: StreamedCompletion, other: Stream, observed: np.ndarray):
        train = fitted.train
        self.fitted = fitted
        complete, gaps = self._read([task for task in train.tasks if task in other.tasks], other)
        measured = complete.count + gaps.cells > 0
        if not measured.all():
            # A row of NaN stands for a task that the other model did not learn.
            complete, gaps = self._read(list(compress(self.other.tasks, measured)), other)
        self.in_sibling = np.isin(train.tasks, self.other.tasks)
        self.filling = gaps.solve(complete) if complete.dropped else np.asarray
        total = None
        for chunk, other_chunk in self._chunks():
            measured = np.isfinite(chunk).any(axis=0)
            part = moments.chunk_moments(self._stack(chunk, other_chunk)[:, measured])
            total = part if total is None else total + part
        sample = fitted.sample_
        self.model = SiblingModel(
            fitted.method,
            total=_gram_with_ones(total),
            columns=self._stack(train.take(sample), self.other.take(sample)),
            in_sibling=self.in_sibling,
        )
        self.observed = observed
        self._difference_models: dict[float, FoldInModel] = {}

    def _read(self, shared: list[str], other: Stream) -> tuple[moments.Moments, RowEffects]:
        """Opens the rows of these training tasks as `self.other`, and gathers what fills them."""
        train = self.fitted.train
        if other.examples != train.examples or not shared:
            raise LetheError(
                f"{other.path}: {other.examples} examples and {len(shared)} of the "
                f"{len(train.tasks)} training tasks; expected the {train.examples} examples of "
                f"{train.path} and a measured row of at least one of its tasks"
            )
        self.other = Stream(other.path, shared, train.chunk)
        complete, gaps, _ = _gather(self.other, np.empty(0, dtype=int))
        return complete, gaps

    def predict_chunks(
        self, index: np.ndarray, values: np.ndarray, new: Stream
    ) -> Iterator[np.ndarray]:
        """Predicted rows (R, n); `new` holds the other model's columns of the R tasks.

        A column of NaN is as good as none: its task is predicted from the training rows alone.
        """
        if len(new.tasks) != len(values) or new.examples != self.other.examples:
            raise LetheError(
                f"{new.path}: {len(new.tasks)} tasks and {new.examples} examples; expected "
                f"{len(values)}, one per predicted row, and {self.other.examples} examples"
            )
        scale = self.model.scale(len(index))
        combinations = self.model.combinations(scale)
        if scale not in self._difference_models:
            self._difference_models[scale] = self.model.difference_model(scale, self.observed)
        new = Stream(new.path, new.tasks, self.fitted.train.chunk)
        offsets, known = self._mean_deviations(new)
        other_probed = self.other.take(index)
        probed = with_ones(self._stack(self.fitted.train.take(index), other_probed))
        shift = new_deviations(
            new.take(index), mean_row=self._mean_row(other_probed), offsets=offsets
        )
        weights = self._difference_models[scale].weights(
            (combinations @ probed)[:-1], values - scale * shift
        )
        on_stacked = weights @ combinations
        if not known.all():
            on_stacked[~known] = self._weights_without_sibling(probed, values[~known])
        chunks = zip(self._chunks(), new, strict=True)
        for (chunk, other_chunk), new_chunk in chunks:
            shift = new_deviations(new_chunk, mean_row=self._mean_row(other_chunk), offsets=offsets)
            stacked = with_ones(self._stack(chunk, other_chunk))
            yield on_stacked @ stacked + scale * shift

    def _weights_without_sibling(self, probed: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Weights (R, 2M + 1) on [Z; V; 1] that are 0 on V, from [Z; V; 1] at the probes."""
        tasks = len(self.in_sibling)
        weights = self.fitted.model_.weights(probed[:tasks], values)
        without = np.zeros((len(values), tasks))
        return np.hstack([weights[:, :-1], without, weights[:, -1:]])

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        yield from zip(self.fitted.train, self.other, strict=True)

    def _mean_row(self, other_chunk: np.ndarray) -> np.ndarray:
        return np.asarray(self.filling(other_chunk), dtype=np.float64).mean(axis=0)

    def _stack(self, chunk: np.ndarray, other_chunk: np.ndarray) -> np.ndarray:
        """[Z; V] (2M, n) of columns, without unknown cells."""
        rows = np.asarray(self.fitted.filling_(chunk), dtype=np.float64)
        deviating = np.zeros_like(rows)
        filled = np.asarray(self.filling(other_chunk), dtype=np.float64)
        deviating[self.in_sibling] = filled - filled.mean(axis=0)
        return np.vstack([rows, deviating])

    def _mean_deviations(self, new: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Mean deviation (R,) of the new tasks' known cells from the other model's mean row.

        Second is a mask (R,) of the tasks with a known cell.
        """
        sums = np.zeros(len(new.tasks))
        counts = np.zeros(len(new.tasks))
        for other_chunk, new_chunk in zip(self.other, new, strict=True):
            deviating = new_chunk - self._mean_row(other_chunk)
            observed = np.isfinite(deviating)
            sums += np.where(observed, deviating, 0.0).sum(axis=1)
            counts += observed.sum(axis=1)
        return sums / np.maximum(counts, 1), counts > 0


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
