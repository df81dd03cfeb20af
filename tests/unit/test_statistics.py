import numpy as np
import pytest
from scipy import stats

from lethe.statistics import bootstrap_interval, bootstrap_p, holm, paired_difference, tail


def covered(n, draws=600, level=0.95):
    """Share of samples of n normal values whose interval holds the true mean."""
    samples = np.random.default_rng(n).normal(size=(draws, n))
    ends = np.array([bootstrap_interval(sample, level) for sample in samples])
    return ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean()


@pytest.mark.parametrize("n", [8, 20])
def test_the_interval_covers_what_it_says_at_the_numbers_of_tasks_in_use(n):
    # The plain percentiles cover .89 and .92. Standard error of the share: .009.
    assert covered(n) == pytest.approx(0.95, abs=0.025)


def test_another_level_is_covered_as_well():
    assert covered(8, level=0.8) == pytest.approx(0.8, abs=0.03)


def test_four_values_can_give_no_more_than_their_range():
    values = np.array([0.1, 0.4, -0.2, 0.7])
    assert bootstrap_interval(values) == pytest.approx((-0.2, 0.7), abs=0.05)
    assert 0.84 < covered(4) < 0.91


@pytest.mark.parametrize("n", [2, 8, 29])
def test_the_tail_is_that_of_the_t_interval_with_the_sample_deviation(n):
    # On normal resampled means, of deviation sqrt((n - 1) / n) s / sqrt(n), the two are one.
    reach = -stats.norm.ppf(tail(n)) * np.sqrt((n - 1) / n)
    assert reach == pytest.approx(stats.t.ppf(0.975, n - 1))


def test_many_values_have_the_plain_percentiles():
    assert tail(10**6) == pytest.approx(0.025, rel=1e-3)


def test_the_interval_never_leaves_the_range_and_holds_the_mean():
    values = np.random.default_rng(1).exponential(size=7)
    low, high = bootstrap_interval(values)
    assert values.min() <= low < values.mean() < high <= values.max()


@pytest.mark.parametrize("values", [[], [0.3], [0.3, np.nan]])
def test_less_than_two_known_values_have_no_interval(values):
    assert np.isnan(bootstrap_interval(np.array(values))).all()


def test_what_is_unknown_is_left_out():
    values = np.array([0.1, 0.4, -0.2, 0.7, 0.3])
    assert bootstrap_interval(np.append(values, np.nan)) == bootstrap_interval(values)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(2).normal(size=9)
    assert bootstrap_interval(values) == bootstrap_interval(values.copy())
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)


def test_a_paired_difference_has_the_interval_of_its_differences():
    rng = np.random.default_rng(3)
    values, reference = rng.normal(size=8), rng.normal(size=8)
    found = paired_difference(values, reference)
    assert (found.low, found.high) == bootstrap_interval(values - reference)
    assert found.mean == pytest.approx((values - reference).mean())


def test_a_planned_comparison_without_a_p_still_counts_in_the_correction():
    p_values = np.array([0.02, 0.03, np.nan])
    np.testing.assert_allclose(holm(p_values), [0.04, 0.04, np.nan])
    np.testing.assert_allclose(holm(p_values, comparisons=3), [0.06, 0.06, np.nan])


@pytest.mark.parametrize("n", [6, 29])
def test_the_p_of_resampled_means_is_the_level_at_which_their_interval_ends_at_0(n):
    for level in (0.5, 0.9, 0.95):
        assert bootstrap_p(n, tail(n, level)) == pytest.approx(1 - level)
    assert bootstrap_p(n, 1.0) == 1


def test_resampled_means_of_few_values_give_no_lower_p_than_their_signs():
    for n in (2, 3, 4, 5):
        assert bootstrap_p(n, 1e-9) == 2.0 ** (1 - n)
