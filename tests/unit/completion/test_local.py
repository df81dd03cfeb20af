"""Training tasks that resemble the new one count more."""

import numpy as np
import pytest

from lethe.completion.gaussian import Gaussian
from lethe.completion.local import LocalGaussian

EXAMPLES = 400
PROBES = np.arange(0, EXAMPLES, 25)


def two_kinds(seed=0):
    """26 tasks of two kinds: the second kind forgets by other factors and elsewhere."""
    rng = np.random.default_rng(seed)
    kinds = []
    for _ in range(2):
        rows = rng.normal(size=(13, 2)) @ rng.normal(size=(2, EXAMPLES))
        kinds.append(rows + 2 * rng.normal(size=EXAMPLES))
    z = np.vstack(kinds)
    return z + 0.3 * rng.normal(size=z.shape)


def test_without_a_share_for_distances_it_is_the_gaussian_method():
    z = two_kinds()
    local = LocalGaussian(mu=0).fit(z[1:]).predict(PROBES, z[0, PROBES])
    np.testing.assert_allclose(local, Gaussian().fit(z[1:]).predict(PROBES, z[0, PROBES]))


def test_tasks_of_the_same_kind_count_more():
    z = two_kinds()
    method = LocalGaussian().fit(z[1:])
    first = Gaussian().fit(z[1:])
    weights = first.model_.weights(z[1:, PROBES], z[[0]][:, PROBES])[0]
    shares = method._shares(method.model_.total, weights)
    assert shares.sum() == pytest.approx(1)
    assert shares[:12].mean() > shares[12:].max()
    assert shares.min() >= 0.5 / 25


def test_distances_are_those_of_rows_without_their_means():
    z = two_kinds()
    method = LocalGaussian(tau=2.0, mu=1.0).fit(z[1:])
    weights = method.model_.weights(z[1:, PROBES], z[[0]][:, PROBES])[0]
    predicted = weights[:-1] @ z[1:] + weights[-1]
    differences = z[1:] - predicted
    distances = np.square(differences - differences.mean(axis=1, keepdims=True)).sum(axis=1)
    expected = np.exp(-(distances / distances.min() - 1) / 2.0)
    shares = method._shares(method.model_.total, weights)
    np.testing.assert_allclose(shares, expected / expected.sum(), rtol=1e-6, atol=1e-12)


def test_rows_are_weighted_one_by_one():
    z = two_kinds()
    train = np.delete(z, [0, 20], axis=0)
    method = LocalGaussian().fit(train)
    together = method.predict(PROBES, z[[0, 20]][:, PROBES])
    for row, number in enumerate((0, 20)):
        alone = method.predict(PROBES, z[number, PROBES])
        np.testing.assert_allclose(together[row], alone, atol=1e-9)
    assert not method.has_intervals
