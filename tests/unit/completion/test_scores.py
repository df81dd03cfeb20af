import numpy as np
import pytest

from lethe.completion.scores import METRICS, score_rows

RNG = np.random.default_rng(0)
TOP = [METRICS.index("top_1_percent"), METRICS.index("top_10_percent")]


def tops(truth, predicted):
    """Shares (R, 2) of the top 1 and 10 percent that are found."""
    return score_rows(truth, predicted, 0.5)[:, TOP]


def binary(share=0.3, rows=6, examples=200):
    return (RNG.random((rows, examples)) < share).astype(float)


def test_without_ties_the_top_is_counted():
    truth, predicted = RNG.normal(size=(2, 6, 200))
    for share, found in zip((2, 20), tops(truth, predicted).T, strict=True):
        sets = [np.argsort(-values, axis=1)[:, :share] for values in (truth, predicted)]
        counted = [len(np.intersect1d(*both)) / share for both in zip(*sets, strict=True)]
        assert found.tolist() == counted


@pytest.mark.parametrize("predicted", [np.round(RNG.normal(size=(6, 200)), 1), binary()])
def test_the_order_of_examples_changes_no_top_share(predicted):
    truth, order = binary(), RNG.permutation(200)
    for first in (order, np.argsort(-truth[0]), np.argsort(truth[0])):
        np.testing.assert_allclose(
            tops(truth[:, first], predicted[:, first]), tops(truth, predicted), rtol=1e-12
        )


def test_a_constant_prediction_finds_of_the_top_what_chance_does():
    constant = np.zeros((6, 200))
    for truth in (binary(), np.sort(binary()), RNG.normal(size=(6, 200))):
        np.testing.assert_allclose(tops(truth, constant), [[0.01, 0.1]] * 6, rtol=1e-12)


def test_the_top_share_of_ties_is_the_mean_over_ways_to_break_them():
    truth, predicted = binary(), np.round(RNG.normal(size=(6, 200)), 1)
    broken = [
        tops(truth + 1e-6 * RNG.random(truth.shape), predicted + 1e-6 * RNG.random(truth.shape))
        for _ in range(300)
    ]
    np.testing.assert_allclose(tops(truth, predicted), np.mean(broken, axis=0), atol=0.04)


def test_a_prediction_that_is_right_about_a_tied_truth_finds_its_places_share():
    truth = np.repeat([[1.0, 0.0]], [40, 160], axis=1)
    np.testing.assert_allclose(tops(truth, truth), [[2 / 40, 20 / 40]])
