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


@pytest.mark.filterwarnings("error")
def test_training_tasks_that_are_predicted_without_an_error_give_means_without_intervals():
    method = METHODS["gaussian"]().fit(np.zeros((5, 240)))
    predicted = MeanPredictor(method, np.ones((1, 240), dtype=bool)).predict([0, 5], [1.0, 2.0])
    assert np.isfinite(predicted.values).all() and np.isnan(predicted.low).all()


def test_many_training_tasks_are_calibrated_on_some_of_them(monkeypatch):
    monkeypatch.setattr(foldin, "MANY_TASKS", 20)
    monkeypatch.setattr(foldin, "JUDGED_TASKS", 10)
    method = METHODS["gaussian"]().fit(tasks(30))
    predicted = MeanPredictor(method, domain_masks(DOMAINS)[1]).predict([0, 5], [1.0, 2.0])
    assert (predicted.low < predicted.high).all()


def test_the_mean_of_the_task_does_not_depend_on_the_domains_beside_it(method):
    everything = np.ones((1, 240), dtype=bool)
    both = np.vstack([everything, domain_masks(DOMAINS)[1]])
    new = tasks(2, seed=1)
    index = np.arange(0, 240, 11)
    alone = MeanPredictor(method, everything).predict(index, new[:, index])
    beside = MeanPredictor(method, both).predict(index, new[:, index])
    np.testing.assert_allclose(beside.low[:, :, 0], alone.low[:, :, 0], atol=1e-12)


def test_calibration_draws_other_probes_for_every_left_out_task(method, monkeypatch):
    drawn = []
    of_row = MeanPredictor._scores_of_row

    def remember(self, model, row, indexes):
        drawn.extend(tuple(index) for index in indexes)
        return of_row(self, model, row, indexes)

    monkeypatch.setattr(MeanPredictor, "_scores_of_row", remember)
    new = tasks(1, seed=1)[0]
    MeanPredictor(method, np.ones((1, 240), dtype=bool)).predict([3, 70, 150], new[[3, 70, 150]])
    assert len(drawn) == 400 and len(set(drawn)) > 390


def test_a_row_of_another_model_gives_the_means_of_the_row_predicted_with_it():
    everything = tasks(21)
    other = everything + 0.3 * np.random.default_rng(4).normal(size=everything.shape)
    method = METHODS["gaussian"]().fit(everything[:19], other=other[:19])
    _, members = domain_masks(DOMAINS)
    index = np.array([200, 5, 90, 31])
    new = everything[19:]
    predictor = MeanPredictor(method, members)
    predicted = predictor.predict(index, new[:, index], other=other[19:])
    row = method.predict(index, new[:, index], other=other[19:])
    row[:, index] = new[:, index]
    expected = np.stack([row[:, mask].mean(axis=1) for mask in members], axis=1)
    np.testing.assert_allclose(predicted.values, expected, atol=1e-10)
    without = predictor.predict(index, new[:, index])
    assert (predicted.high - predicted.low).mean() < 0.6 * (without.high - without.low).mean()
    unknown = predictor.predict(index, new[:, index], other=np.full((2, 240), np.nan))
    np.testing.assert_array_equal(unknown.low, without.low)


def test_a_probe_without_a_value_is_no_probe(method):
    _, members = domain_masks(DOMAINS)
    new = tasks(1, seed=3)[0]
    predictor = MeanPredictor(method, members)
    predicted = predictor.predict([7, 80, 100], [new[7], np.nan, new[100]])
    expected = predictor.predict([7, 100], new[[7, 100]])
    np.testing.assert_array_equal(predicted.low, expected.low)
