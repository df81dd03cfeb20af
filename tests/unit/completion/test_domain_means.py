import numpy as np
import pytest

from lethe.completion import METHODS, foldin
from lethe.completion.domain_means import MeanPredictor, domain_masks

DOMAINS = np.array([f"d{j % 4}" for j in range(240)])


def tasks(count, seed=0):
    """Three factors and noise; the factors differ by domain."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(7)
    factors = shared.normal(size=(3, 240)) + 2 * shared.normal(size=(3, 4))[:, np.arange(240) % 4]
    return rng.normal(size=(count, 3)) @ factors + rng.normal(size=(count, 240))


@pytest.fixture(scope="module")
def method():
    return METHODS["gaussian"]().fit(tasks(40))


def test_means_are_those_of_the_predicted_row_with_its_probes_measured(method):
    names, members = domain_masks(DOMAINS)
    assert names == ["d0", "d1", "d2", "d3"]
    new = tasks(2, seed=1)
    index = np.arange(0, 240, 11)
    row = method.predict(index, new[:, index])
    row[:, index] = new[:, index]
    predicted = MeanPredictor(method, members).predict(index, new[:, index])
    expected = np.stack([row[:, mask].mean(axis=1) for mask in members], axis=1)
    np.testing.assert_allclose(predicted.values, expected, atol=1e-10)
    some = np.arange(240) < 100
    among = MeanPredictor(method, members).predict(index, new[:, index], among=some)
    expected = np.stack([row[:, mask & some].mean(axis=1) for mask in members], axis=1)
    np.testing.assert_allclose(among.values, expected, atol=1e-10)


@pytest.mark.parametrize("members", ["task", "domains"])
@pytest.mark.parametrize("k", [5, 30])
def test_intervals_hold_the_stated_share_of_means_of_many_unseen_tasks(method, members, k):
    masks = np.ones((1, 240), dtype=bool) if members == "task" else domain_masks(DOMAINS)[1]
    new = tasks(150, seed=1)
    predictor = MeanPredictor(method, masks)
    truth = np.stack([new[:, mask].mean(axis=1) for mask in masks], axis=1)
    inside = []
    for seed in range(3):
        index = np.sort(np.random.default_rng(seed).choice(240, k, replace=False))
        predicted = predictor.predict(index, new[:, index], [0.8])
        inside.append((predicted.low[0] <= truth) & (truth <= predicted.high[0]))
    assert np.mean(inside) == pytest.approx(0.8, abs=0.06)


def test_a_domain_whose_examples_are_all_probed_is_known(method):
    _, members = domain_masks(DOMAINS)
    index = np.flatnonzero(members[1])
    new = tasks(1, seed=2)[0]
    predicted = MeanPredictor(method, members).predict(index, new[index])
    assert predicted.values[0, 1] == pytest.approx(new[members[1]].mean())
    assert predicted.low[0, 0, 1] == predicted.high[0, 0, 1]


def test_two_training_tasks_give_means_without_intervals():
    method = METHODS["gaussian"]().fit(tasks(2))
    predicted = MeanPredictor(method, np.ones((1, 240), dtype=bool)).predict([0, 5], [1.0, 2.0])
    assert np.isfinite(predicted.values).all() and np.isnan(predicted.low).all()


def test_many_training_tasks_are_calibrated_on_some_of_them(monkeypatch):
    monkeypatch.setattr(foldin, "MANY_TASKS", 20)
    monkeypatch.setattr(foldin, "JUDGED_TASKS", 10)
    method = METHODS["gaussian"]().fit(tasks(30))
    predicted = MeanPredictor(method, domain_masks(DOMAINS)[1]).predict([0, 5], [1.0, 2.0])
    assert (predicted.low < predicted.high).all()
