import numpy as np
import pytest

from lethe.analysis.rises import RunKey, describe_rises, noise_floor_between_seeds


def test_rises_falls_and_the_worst_domain_are_described_apart():
    forgetting = np.array([0.5, -0.5, 0.02, np.nan, 0.3, -0.1])
    columns = describe_rises(forgetting, ["a", "a", "b", "b", "b", "c"], noise_floor=0.05)
    assert columns["worst_domain"] == "b"
    assert columns["worst_domain_forgetting"] == pytest.approx(0.16)
    assert columns["rise_share"] == pytest.approx(2 / 5)
    assert columns["rise_mean"] == pytest.approx(0.4)
    assert columns["drift"] == pytest.approx((0.5 + 0.5 + 0.02 + 0.3 + 0.1) / 5)


def test_a_model_that_stayed_where_it_was_has_no_rise_and_no_drift():
    columns = describe_rises(np.zeros(3), ["b", "a", "a"], noise_floor=0.0)
    assert columns["worst_domain"] == "a", "equal domains: the first by name"
    assert (columns["rise_share"], columns["drift"]) == (0, 0)
    assert np.isnan(columns["rise_mean"])


def test_nothing_measured_is_nan_and_no_domain():
    columns = describe_rises(np.array([np.nan]), ["a"], noise_floor=0.0)
    assert columns.pop("worst_domain") == ""
    assert np.isnan(list(columns.values())).all()


def test_the_noise_floor_is_twice_the_deviation_between_seeds_without_replay():
    rng = np.random.default_rng(0)
    rows = {}
    for task in "abcdefgh":
        signal = rng.normal(size=500)
        for seed in (0, 1, 2):
            rows[RunKey("none", task, seed)] = signal + 0.05 * rng.normal(size=500)
            rows[RunKey("random", task, seed)] = signal + 0.5 * rng.normal(size=500)
    rows[RunKey("none", "a", 0)][3] = np.nan
    assert noise_floor_between_seeds(rows) == pytest.approx(0.1, rel=0.05)
    random = {key: row for key, row in rows.items() if key.strategy == "random"}
    assert noise_floor_between_seeds(random) == pytest.approx(1.0, rel=0.05)
    assert noise_floor_between_seeds({RunKey("none", "a", 0): np.ones(2)}) == 0.0


def test_every_lost_answer_is_a_rise():
    lost = np.array([1.0, 0.0, -1.0, np.nan, 0.0])
    rows = {RunKey("none", "a", 0): lost, RunKey("none", "a", 1): lost[::-1]}
    assert noise_floor_between_seeds(rows) == 0
    assert describe_rises(lost, list("aabbb"), 0.0)["rise_share"] == pytest.approx(1 / 4)
