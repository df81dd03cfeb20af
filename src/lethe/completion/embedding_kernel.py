"""The Gaussian method whose column noise is alike for examples with similar embeddings."""

from collections.abc import Sequence

import numpy as np

from lethe.completion.completer import Completer
from lethe.completion.foldin import FoldInModel, Prior, sample_columns, with_ones
from lethe.completion.gaussian import Gaussian

# Shares of the noise variance that similar examples have in common, and length scales of the
# kernel in units of the median distance. They are chosen together by leave-one-task-out.
SHARES = (0.0, 0.15, 0.3, 0.6, 0.8)
LENGTH_SCALES = (0.5, 0.7, 1.0, 1.5)
# Examples whose distances give the median.
MEDIAN_SAMPLE = 500
# Least number of left-out predictions that a setting is judged by.
JUDGED_PREDICTIONS = 60


class EmbeddingGaussian(Completer):
    """`Gaussian` with a kernel of the examples' embeddings on the column noise.

    `Gaussian` gives every column its own noise, independent of all others. Here the noise of
    columns i and j has the covariance

        f sqrt(d_i d_j) ((1 - s) [i = j] + s exp(-|e_i - e_j|^2 / (2 l^2)))

    with the noise variances d and the factor f of `Gaussian`, and embeddings e whose dimensions
    have mean 0 and variance 1. The share s and the length scale l are chosen by leave-one-task-out
    for each number of probes. The share 0, which is `Gaussian`, is among the candidates. It costs
    O((M^2 + k D) N) for embeddings of D dimensions, without any (N, N) matrix. It has no intervals
    of its own. The method is Gaussian process regression (Rasmussen and Williams 2006, "Gaussian
    Processes for Machine Learning", formula 2.25) on the residuals of `Gaussian`.

    Parameters
    ----------
    embeddings
        Vectors (N, D) of the examples in the order of Z's columns. An example with a NaN in its
        vector shares no noise with others.
    share
        Share s of the noise; by default chosen.

    Raises
    ------
    ValueError
        If the embeddings are not a matrix, or a share is not in 0..1.
    """

    def __init__(self, embeddings: np.ndarray, share: float | None = None):
        if np.ndim(embeddings) != 2:
            raise ValueError(f"embeddings have shape {np.shape(embeddings)}; expected (N, D)")
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"share {share} is not in 0..1")
        self._embeddings = _standardise(np.asarray(embeddings, dtype=np.float64))
        self.share = share

    def _fit(self, values: np.ndarray, observed: np.ndarray) -> None:
        if len(self._embeddings) != values.shape[1]:
            raise ValueError(
                f"embeddings of {len(self._embeddings)} examples, but Z has {values.shape[1]}"
            )
        self._gaussian = Gaussian().fit(np.where(observed, values, np.nan))
        _, noise = self._gaussian.model_.parts
        self._deviations = np.sqrt(noise.variance(self._gaussian.rows_))
        self._median = _median_distance(self._embeddings)
        self._choices: dict[int, tuple[float, float]] = {}

    def kernel_settings(self, probes: int) -> tuple[float, float]:
        """The share s, and the length scale l in units of the median distance."""
        if probes not in self._choices:
            self._choices[probes] = self._choose(probes)
        return self._choices[probes]

    def _candidates(self) -> list[tuple[float, float]]:
        shares = SHARES if self.share is None else (self.share,)
        candidates = []
        for share in shares:
            for length_scale in LENGTH_SCALES:
                candidates.append((share, length_scale))
        return candidates

    def _choose(self, probes: int) -> tuple[float, float]:
        """The candidate of least squared error over unprobed cells of left-out training rows."""
        candidates = self._candidates()
        model = self._gaussian.model_.judge
        if model.tasks < 3 or probes == 0 or model.sample.shape[1] < 2:
            return candidates[0]
        factor = self._gaussian.model_.choose(probes)
        embeddings = self._embeddings[self._gaussian.sampled_]
        draws = -(-JUDGED_PREDICTIONS // model.tasks)
        errors = np.zeros(len(candidates))
        for index in model.draw_probes(probes, draws):
            distances = _squared_distances(embeddings[index], embeddings)
            kernels = {}
            for length_scale in LENGTH_SCALES:
                kernels[length_scale] = self._kernel(distances, length_scale)
            for row in range(model.tasks):
                errors += _squared_errors_of_row(
                    model,
                    row=row,
                    index=index,
                    factor=factor,
                    kernels=kernels,
                    candidates=candidates,
                )
        return candidates[int(np.argmin(errors))]

    def _kernel(self, squared_distances: np.ndarray, length_scale: float) -> np.ndarray:
        return np.exp(-squared_distances / (2 * (length_scale * self._median) ** 2))

    def _predict(self, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        model = self._gaussian.model_
        factor = model.choose(len(index))
        share, length_scale = self.kernel_settings(len(index))
        prior, _ = model.parts
        distances = _squared_distances(self._embeddings[index], self._embeddings)
        weights, smooth = _condition(
            prior,
            probed=with_ones(self._gaussian.rows_[:, index]),
            values=values,
            deviations=self._deviations[index],
            kernel=self._kernel(distances, length_scale),
            index=index,
            factor=factor,
            share=share,
        )
        rows = self._gaussian.rows_
        return weights[:, :-1] @ rows + weights[:, -1:] + smooth * self._deviations


def _condition(
    prior: Prior,
    *,
    probed: np.ndarray,
    values: np.ndarray,
    deviations: np.ndarray,
    kernel: np.ndarray,
    index: np.ndarray,
    factor: float,
    share: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean of the combination and of the noise that similar examples share.

    Parameters
    ----------
    probed
        Columns (M + 1, k) of [Z; 1] at the probes.
    values
        Probe values (R, k).
    deviations
        Standard deviations (k,) of the noise at the probes.
    kernel
        Kernel (k, n) of the probes and all columns, among them the probes at `index` (k,).

    Returns
    -------
    Weights (R, M + 1) of rows and ones, and the noise (R, n) in units of its standard deviation.
    """
    directions = prior.basis @ probed
    shared = share * kernel[:, index]
    # An example shares all noise with itself, also without an embedding.
    np.fill_diagonal(shared, 1.0)
    covariance = directions.T @ directions
    covariance += factor * deviations[:, None] * shared * deviations
    target = values - prior.mean @ probed
    solved = np.linalg.solve(covariance, target.T).T
    weights = prior.mean + (solved @ directions.T) @ prior.basis
    smooth = factor * share * ((solved * deviations) @ kernel)
    return weights, smooth


def _squared_errors_of_row(
    model: FoldInModel,
    *,
    row: int,
    index: np.ndarray,
    factor: float,
    kernels: dict[float, np.ndarray],
    candidates: Sequence[tuple[float, float]],
) -> np.ndarray:
    """Sum (C,) of squared errors of a left-out row over its unprobed measured columns."""
    (prior, noise), remaining = model.without_row(row)
    columns = model.sample[remaining]
    deviations = np.sqrt(noise.variance(columns[:-1]))
    scored = model.observed[row].copy()
    scored[index] = False
    truth = model.sample[row]
    errors = []
    for share, length_scale in candidates:
        weights, smooth = _condition(
            prior,
            probed=columns[:, index],
            values=truth[None, index],
            deviations=deviations[index],
            kernel=kernels[length_scale],
            index=index,
            factor=factor,
            share=share,
        )
        predicted = weights[0] @ columns + smooth[0] * deviations
        errors.append(np.square(predicted - truth)[scored].sum())
    return np.array(errors)


def _standardise(embeddings: np.ndarray) -> np.ndarray:
    """Every dimension with mean 0 and variance 1 over the examples without NaN."""
    complete = np.isfinite(embeddings).all(axis=1)
    if not complete.any():
        return np.full_like(embeddings, np.nan)
    spread = embeddings[complete].std(axis=0)
    centred = embeddings - embeddings[complete].mean(axis=0)
    return np.where(complete[:, None], centred / np.where(spread > 0, spread, 1.0), np.nan)


def _squared_distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances (k, n) of vectors (k, D) and (n, D); infinite where a vector is NaN."""
    squares = np.square(some).sum(axis=1)[:, None] + np.square(others).sum(axis=1)
    distances = np.maximum(squares - 2 * some @ others.T, 0.0)
    return np.where(np.isfinite(distances), distances, np.inf)


def _median_distance(embeddings: np.ndarray) -> float:
    """Median distance of two different examples, over a sample of those with a vector."""
    complete = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    sample = embeddings[sample_columns(complete[None], MEDIAN_SAMPLE)[0]]
    if len(sample) < 2:
        return 1.0
    distances = _squared_distances(sample, sample)
    median = np.sqrt(np.median(distances[np.triu_indices(len(sample), k=1)]))
    return float(median) if median > 0 else 1.0
