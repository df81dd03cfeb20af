import numpy as np
import pytest
from scipy.special import expit

from lethe.completion import METHODS
from lethe.completion.logistic import LogisticFactorAnalysis
from lethe.completion.logistic_probes import probe_information
from lethe.completion.probes import choose_probes, half_of, random_probes
from lethe.completion.scores import METRICS, score_rows
from lethe.config.analysis_settings import CompletionSettings

RNG = np.random.default_rng(0)
BASE = -1.5 + RNG.normal(0, 1.2, 300)
FACTORS = RNG.normal(0, 1.2, (2, 300))


def probabilities(tasks, seed):
    rng = np.random.default_rng(seed)
    return expit(BASE + rng.normal(0, 0.7, (tasks, 1)) + rng.normal(size=(tasks, 2)) @ FACTORS)


def binary(tasks, seed):
    p = probabilities(tasks, seed)
    return (np.random.default_rng(seed + 100).random(p.shape) < p).astype(float)


def error_of(method, k):
    """Root mean square distance to the true probabilities of 20 new tasks."""
    index = np.sort(np.random.default_rng(3).choice(300, k, replace=False))
    predicted = method.predict(index, binary(20, seed=2)[:, index])
    return np.sqrt(np.mean((predicted - probabilities(20, seed=2)) ** 2))


def test_probabilities_come_nearer_to_the_true_ones_than_rates_and_the_gaussian_method():
    train = binary(60, seed=1)
    errors = {}
    for name in ("column_mean", "gaussian", "logistic_fa"):
        errors[name] = error_of(METHODS[name]().fit(train), 100)
    assert errors["logistic_fa"] < 0.97 * errors["gaussian"] < errors["column_mean"]


def test_more_probes_help():
    method = LogisticFactorAnalysis().fit(binary(60, seed=1))
    errors = [error_of(method, k) for k in (3, 30, 150)]
    assert errors == sorted(errors, reverse=True)


def test_without_probes_a_task_starts_near_the_rates_of_the_examples():
    train = binary(60, seed=1)
    predicted = LogisticFactorAnalysis().fit(train).predict([], [])
    assert np.corrcoef(predicted, train.mean(axis=0))[0, 1] > 0.97


def test_what_was_not_measured_carries_no_weight():
    train = binary(30, seed=1)
    observed = np.random.default_rng(4).random(train.shape) < 0.7
    observed[:, 5] = False
    with_holes = np.where(observed, train, np.nan)
    method = LogisticFactorAnalysis().fit(with_holes)
    index = np.arange(0, 300, 11)
    predicted = method.predict(index, binary(1, seed=2)[0, index])
    assert np.isfinite(predicted).all()
    # Nothing is known of the column, so it is predicted as an average example.
    assert method.base_[5] == pytest.approx(method.base_.mean(), abs=0.2)
    np.testing.assert_allclose(method.features_[5, 1:], 0, atol=1e-12)


def test_the_fit_is_the_same_every_time():
    first = LogisticFactorAnalysis().fit(binary(20, seed=1))
    second = LogisticFactorAnalysis().fit(binary(20, seed=1))
    np.testing.assert_array_equal(first.features_, second.features_)


def test_the_former_method_is_refused_with_the_new_name():
    with pytest.raises(ValueError, match="logistic_foldin was replaced by logistic_fa"):
        CompletionSettings(methods=["column_mean", "logistic_foldin"])


def test_logistic_probes_order_new_tasks_better_than_random_ones():
    train = binary(60, seed=1)
    test = binary(40, seed=2)
    method = LogisticFactorAnalysis().fit(train)
    # Both are judged in the half of the columns that no probe comes from.
    half = half_of(300, seed=0)
    chosen = choose_probes(train, 10, "a_optimal_logistic", allowed=half)
    scores = []
    for index in (chosen, *(random_probes(300, 10, seed, allowed=half) for seed in range(4))):
        predicted = method.predict(index, test[:, index])[:, ~half]
        aucs = score_rows(test[:, ~half], predicted, 0.5)[:, METRICS.index("auc")]
        scores.append(float(np.nanmean(aucs)))
    assert scores[0] > max(scores[1:])


def test_a_logistic_probe_is_worth_most_where_the_answer_is_open():
    train = np.tile([[0.0, 1.0], [1.0, 0.0]], (6, 30))
    train[:, :20] = 0.0
    train[:, 20] = np.nan
    information = probe_information(train[:, np.arange(60) != 20])
    assert information.variance[0] > information.variance[-1]
    chosen = choose_probes(train, 8, "a_optimal_logistic")
    assert chosen.min() > 20


def test_logistic_probes_of_nats_are_refused_by_name():
    with pytest.raises(ValueError, match="logistic methods need Z in 0..1"):
        choose_probes(np.full((4, 9), 2.0), 3, "a_optimal_logistic")
