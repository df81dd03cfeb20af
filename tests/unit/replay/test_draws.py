from collections import Counter

import numpy as np
import pytest

from lethe.config.replay_settings import TemperatureBySampleSize, TemperatureBySpread
from lethe.errors import LetheError
from lethe.replay.draws import (
    count_replayed,
    draw_softmax,
    draw_systematic,
    draw_top,
    effective_sample_size,
    expected_draws,
    softmax_weights,
    temperature_in_nats,
)


def test_weights_are_a_softmax_over_the_temperature():
    found = softmax_weights(np.array([0.0, 0.1, 0.2]), 0.1)
    assert found == pytest.approx(np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())
    assert softmax_weights(np.array([5.0, 5.1, 5.2]), 0.1) == pytest.approx(found)


def test_what_has_no_score_weighs_nothing():
    assert softmax_weights(np.array([1.0, np.nan, 1.0, np.inf]), 1.0).tolist() == [0.5, 0, 0.5, 0]
    with pytest.raises(LetheError, match="no replayable example has a score"):
        softmax_weights(np.array([np.nan, np.nan]), 1.0)


def test_effective_sample_size_is_between_one_and_all():
    assert effective_sample_size(np.full(8, 1 / 8)) == pytest.approx(8)
    assert effective_sample_size(softmax_weights(np.array([9.0, 0, 0]), 0.1)) == pytest.approx(1)


def test_examples_are_drawn_without_replacement():
    for seed in range(20):
        drawn = draw_softmax(np.zeros(10), 10, seed)
        assert sorted(drawn) == list(range(10))


def test_a_draw_depends_on_the_seed_alone():
    logits = np.linspace(0, 3, 30)
    assert (
        draw_softmax(logits, 9, 1).tolist()
        == draw_softmax(logits, 9, 1).tolist()
        != draw_softmax(logits, 9, 2).tolist()
    )


def test_tasks_of_one_seed_are_drawn_apart():
    equal = np.zeros(50)
    one, other = draw_softmax(equal, 10, [0, 11]), draw_softmax(equal, 10, [0, 12])
    assert one.tolist() != other.tolist()
    assert one.tolist() == draw_softmax(equal, 10, [0, 11]).tolist()


def test_first_draws_follow_the_probabilities():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    firsts = Counter(int(draw_softmax(np.log(probabilities), 1, seed)[0]) for seed in range(4000))
    found = np.array([firsts[i] / 4000 for i in range(4)])
    # Four standard errors.
    assert np.abs(found - probabilities).max() < 4 * 0.5 / np.sqrt(4000)


def test_second_draws_follow_the_renormalised_probabilities():
    probabilities = np.array([0.6, 0.3, 0.1])
    pairs = Counter(
        tuple(draw_softmax(np.log(probabilities), 2, seed).tolist()) for seed in range(4000)
    )
    expected = {
        (i, j): probabilities[i] * probabilities[j] / (1 - probabilities[i])
        for i in range(3)
        for j in range(3)
        if i != j
    }
    for pair, chance in expected.items():
        assert abs(pairs[pair] / 4000 - chance) < 4 * 0.5 / np.sqrt(4000)


def test_more_draws_than_examples_show_all_equally_often_up_to_one():
    counts = Counter(draw_softmax(np.array([0.0, 1.0, 5.0]), 8, seed=0).tolist())
    assert sorted(counts.values()) == [2, 3, 3]


def test_examples_without_a_score_are_never_drawn_even_when_others_must_repeat():
    drawn = draw_softmax(np.array([0.0, -np.inf, 0.0]), 5, seed=0)
    assert set(drawn.tolist()) == {0, 2}


@pytest.mark.parametrize(
    ("examples", "ratio", "expected"), [(8000, 1 / 32, 250), (400, 0.125, 50), (8, 0.01, 1)]
)
def test_the_ratio_gives_the_number_of_replayed_examples(examples, ratio, expected):
    assert count_replayed(examples, ratio) == expected


def test_the_top_are_drawn_in_order_and_ties_by_the_seed():
    assert draw_top(np.array([1.0, 5, np.nan, 3]), 2, 0).tolist() == [1, 3]
    assert draw_top(np.array([1.0, 5, np.nan, 3]), 5, 0).tolist() == [1, 3, 0, 1, 3]
    firsts = {draw_top(np.zeros(4), 1, seed)[0] for seed in range(40)}
    assert firsts == {0, 1, 2, 3}
    with pytest.raises(LetheError, match="no replayable example has a score"):
        draw_top(np.array([np.nan]), 1, 0)


def test_a_temperature_follows_the_spread_of_the_scores():
    scores = np.array([0.0, 2.0, np.nan])
    assert temperature_in_nats(0.3, scores, 1) == 0.3
    assert temperature_in_nats(TemperatureBySpread(sd=0.5), scores, 1) == pytest.approx(0.5)
    assert temperature_in_nats(TemperatureBySpread(sd=0.5), 3 * scores, 1) == pytest.approx(1.5)
    assert temperature_in_nats(TemperatureBySpread(sd=0.5), np.ones(3), 1) == np.inf


def test_equal_scores_are_drawn_at_random_although_their_deviation_is_rounded():
    scores = np.full(700, 0.1)
    assert scores.std() > 0
    for temperature in (TemperatureBySpread(sd=1), TemperatureBySampleSize(effective_share=1)):
        assert temperature_in_nats(temperature, scores, 12) == np.inf


@pytest.mark.parametrize("share", [0.2, 1.0, 2.5])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 50.0])
def test_a_temperature_gives_the_effective_sample_size_that_the_settings_name(share, scale):
    scores = scale * np.random.default_rng(0).normal(size=200)
    scores[3] = np.nan
    temperature = temperature_in_nats(TemperatureBySampleSize(effective_share=share), scores, 40)
    size = effective_sample_size(softmax_weights(scores, temperature))
    assert size == pytest.approx(share * 40, rel=1e-6)


def test_a_sample_size_of_the_pool_and_more_is_random_replay():
    scores = np.random.default_rng(0).normal(size=20)
    temperature = temperature_in_nats(TemperatureBySampleSize(effective_share=1), scores, 20)
    assert temperature == np.inf
    weights = softmax_weights(np.append(scores, np.nan), temperature)
    assert weights == pytest.approx([1 / 20] * 20 + [0])


def test_draws_are_expected_in_proportion_to_the_sizes_up_to_one_of_each():
    np.testing.assert_allclose(expected_draws(np.array([1.0, 2, 5]), 1), [0.125, 0.25, 0.625])
    np.testing.assert_allclose(expected_draws(np.array([1.0, 1, 8]), 2), [0.5, 0.5, 1])
    # Once the largest is certain, the second one is, too.
    np.testing.assert_allclose(expected_draws(np.array([1.0, 1, 5, 30]), 3), [0.5, 0.5, 1, 1])
    np.testing.assert_allclose(expected_draws(np.array([1.0, 3]), 5), [2.25, 2.75])
    np.testing.assert_allclose(expected_draws(np.array([1.0, 3]), 4), [2, 2])
    assert expected_draws(np.array([1.0, 3]), 0).tolist() == [0, 0]


def test_a_systematic_draw_takes_each_as_often_as_expected_on_average():
    """And never more than one draw away from it, in any part of the line."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 1, 40)
    domains = np.array(["a"] * 10 + ["b"] * 30)
    expected = expected_draws(scores, 12)
    drawn = np.zeros(40)
    for seed in range(2000):
        indices = draw_systematic(expected, scores, domains, [seed])
        counts = np.bincount(indices, minlength=40)
        assert len(indices) == 12 and counts.max() == 1
        for part in (domains == "a", domains == "b", (domains == "b") & (scores > 0.5)):
            assert abs(counts[part].sum() - expected[part].sum()) < 1
        drawn += counts
    # A frequency of 2,000 draws has a standard deviation of .011 at most.
    np.testing.assert_allclose(drawn / 2000, expected, atol=0.05)


def test_a_systematic_draw_comes_in_an_order_that_spreads_the_domains_over_time():
    domains = np.repeat(["a", "b", "c", "d"], 25)
    expected = np.full(100, 0.48)
    for seed in range(20):
        indices = draw_systematic(expected, np.zeros(100), domains, [seed])
        for start in range(0, 48, 12):
            counts = Counter(domains[indices[start : start + 12]])
            assert len(counts) == 4 and max(counts.values()) <= 4


def test_a_systematic_draw_depends_on_the_seed_alone():
    expected, scores = np.full(30, 0.3), np.arange(30.0)
    draws = [
        draw_systematic(expected, scores, np.array(["a"] * 30), [s]).tolist() for s in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_examples_are_repeated_only_where_all_are_drawn():
    expected = expected_draws(np.array([1.0, 2, 3]), 7)
    counts = np.bincount(draw_systematic(expected, np.zeros(3), np.array(["a"] * 3), [0]))
    assert sorted(counts) == [2, 2, 3]
