import numpy as np
import pytest

from lethe.replay.two_level import two_level_interval


def test_examples_that_all_tasks_share_make_the_interval_wider():
    """Few held-out examples are a sample too; more tasks do not help against that."""
    rng = np.random.default_rng(0)
    by_example = rng.normal(size=(1, 1, 10)) + np.zeros((60, 1, 10))
    low, high = two_level_interval(by_example)
    assert high - low > 0.8
    by_task = rng.normal(size=(10, 1, 1)) + np.zeros((10, 1, 400))
    low, high = two_level_interval(by_task)
    assert high - low > 0.8
    low, high = two_level_interval(rng.normal(size=(60, 1, 400)))
    assert high - low < 0.06


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """Crossed effects of tasks and examples, and noise of seeds."""
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = 0.2 + 0.3 * rng.normal(size=(20, 1, 1)) + 0.3 * rng.normal(size=(1, 1, 60))
        values = values + 0.2 * rng.normal(size=(20, 2, 1)) + rng.normal(size=(20, 2, 60))
        low, high = two_level_interval(values, seed=seed)
        covered += low <= 0.2 <= high
    # 95 percent of 60 is 57; four standard errors below it is 50.
    assert covered >= 50


def test_seeds_are_resampled_within_a_task():
    rng = np.random.default_rng(1)
    values = np.zeros((30, 4, 50)) + 2.0 * rng.normal(size=(30, 4, 1))
    low, high = two_level_interval(values)
    # The standard error of a mean over 120 independent runs of deviation 2 is 0.18.
    assert 0.4 < high - low < 1.6


def test_unknown_values_are_left_out():
    values = np.ones((4, 1, 5))
    values[0, 0, :3] = np.nan
    values[3] = np.nan
    values[:, :, 4] = np.nan
    assert two_level_interval(values) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("shape", [(1, 1, 5), (3, 1, 1), (3, 2, 0)])
def test_no_interval_without_two_tasks_and_two_examples(shape):
    assert np.isnan(two_level_interval(np.ones(shape))).all()


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=(5, 2, 7))
    assert two_level_interval(values) == two_level_interval(values)
