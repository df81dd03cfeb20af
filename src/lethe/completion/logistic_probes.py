"""What a probe of a Z of 0s and 1s is worth under logistic factor analysis."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from lethe.completion.logistic import LogisticFactorAnalysis, variational_weight


@dataclass(frozen=True)
class ProbeInformation:
    """A linear Gaussian problem that stands for the logistic one, for `greedy_columns`.

    Attributes
    ----------
    features
        Features (q, N) of the columns: a new task's logit is the base logit plus their combination
        with unit variance.
    variance
        Noise variance (N,) of the logit that one probe measures.
    spread
        Sum (q, q) over all columns of the outer products of their features, each weighted by the
        square of the slope of the probability in the logit.
    """

    features: np.ndarray
    variance: np.ndarray
    spread: np.ndarray


def probe_information(train: np.ndarray) -> ProbeInformation:
    """The information of every column's probe, from training rows (M, N) of 0s and 1s.

    The variational bound of Jaakkola and Jordan (2000) makes a probe a Gaussian measurement of the
    logit eta with precision tanh(xi / 2) / (2 xi), where xi^2 is the mean square of eta before any
    probe. The summed variance of probabilities is that of the logits, weighted by the squared
    slope p (1 - p).

    Raises
    ------
    ValueError
        If a value lies outside 0..1.
    """
    fitted = LogisticFactorAnalysis().fit(train)
    features = fitted.features_
    prior_variance = np.square(features).sum(axis=1)
    precision = variational_weight(np.sqrt(np.square(fitted.base_) + prior_variance))
    p = expit(fitted.base_ / np.sqrt(1 + np.pi * prior_variance / 8))
    slopes = p * (1 - p)
    return ProbeInformation(
        features=features.T,
        variance=1 / precision,
        spread=(features.T * np.square(slopes)) @ features,
    )
