from collections import Counter

import numpy as np
import pytest
from helpers import tiny

from lethe.errors import LetheError
from lethe.replay.strategies import choose, draw, draws, effective_sample_size, weights

UPSTREAM = tiny.upstream(24)
REPLAYABLE = {example.example_id for example in UPSTREAM if example.split == "replayable"}


def test_weights_are_a_softmax_over_the_temperature():
    found = weights(np.array([0.0, 0.1, 0.2]), 0.1)
    assert found == pytest.approx(np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())
    assert weights(np.array([5.0, 5.1, 5.2]), 0.1) == pytest.approx(found)


def test_what_has_no_score_weighs_nothing():
    assert weights(np.array([1.0, np.nan, 1.0, np.inf]), 1.0).tolist() == [0.5, 0, 0.5, 0]
    with pytest.raises(LetheError, match="no replayable example has a score"):
        weights(np.array([np.nan, np.nan]), 1.0)


def test_effective_sample_size_is_between_one_and_all():
    assert effective_sample_size(np.full(8, 1 / 8)) == pytest.approx(8)
    assert effective_sample_size(weights(np.array([9.0, 0, 0]), 0.1)) == pytest.approx(1)


def test_examples_are_drawn_without_replacement():
    for seed in range(20):
        drawn = draw(np.zeros(10), 10, seed)
        assert sorted(drawn) == list(range(10))


def test_a_draw_depends_on_the_seed_alone():
    logits = np.linspace(0, 3, 30)
    assert draw(logits, 9, 1).tolist() == draw(logits, 9, 1).tolist() != draw(logits, 9, 2).tolist()


def test_tasks_of_one_seed_are_drawn_apart():
    equal = np.zeros(50)
    one, other = draw(equal, 10, [0, 11]), draw(equal, 10, [0, 12])
    assert one.tolist() != other.tolist()
    assert one.tolist() == draw(equal, 10, [0, 11]).tolist()


def test_first_draws_follow_the_probabilities():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    firsts = Counter(int(draw(np.log(probabilities), 1, seed)[0]) for seed in range(4000))
    found = np.array([firsts[i] / 4000 for i in range(4)])
    # Four standard errors.
    assert np.abs(found - probabilities).max() < 4 * 0.5 / np.sqrt(4000)


def test_second_draws_follow_the_renormalised_probabilities():
    probabilities = np.array([0.6, 0.3, 0.1])
    pairs = Counter(tuple(draw(np.log(probabilities), 2, seed).tolist()) for seed in range(4000))
    expected = {
        (i, j): probabilities[i] * probabilities[j] / (1 - probabilities[i])
        for i in range(3)
        for j in range(3)
        if i != j
    }
    for pair, chance in expected.items():
        assert abs(pairs[pair] / 4000 - chance) < 4 * 0.5 / np.sqrt(4000)


def test_more_draws_than_examples_show_all_equally_often_up_to_one():
    counts = Counter(draw(np.array([0.0, 1.0, 5.0]), 8, seed=0).tolist())
    assert sorted(counts.values()) == [2, 3, 3]


def test_examples_without_a_score_are_never_drawn_even_when_others_must_repeat():
    drawn = draw(np.array([0.0, -np.inf, 0.0]), 5, seed=0)
    assert set(drawn.tolist()) == {0, 2}


def test_weights_that_underflow_are_drawn_in_their_order_and_not_repeated():
    """1,000 nats over a temperature of 0.1: all weights but the first are exactly zero."""
    scores = np.array([0.0, 300, 1000, 600])
    assert np.count_nonzero(weights(scores, 0.1)) == 1
    assert draw(scores / 0.1, 4, seed=0).tolist() == [2, 3, 1, 0]
    everything = {e.example_id: 100.0 * i for i, e in enumerate(UPSTREAM)}
    chosen, size = choose(UPSTREAM, everything, len(REPLAYABLE), 0.1, seed=0)
    assert {example.example_id for example in chosen} == REPLAYABLE
    assert size == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 5, 18, 40])
def test_held_out_examples_are_never_replayed(count):
    """However much they would be forgotten."""
    scores = {e.example_id: 100.0 if e.split == "heldout" else 0.0 for e in UPSTREAM}
    for given in (scores, None):
        chosen, _ = choose(UPSTREAM, given, count, 0.1, seed=0)
        assert len(chosen) == count
        assert {example.example_id for example in chosen} <= REPLAYABLE


def test_without_scores_all_replayable_examples_weigh_the_same():
    _, size = choose(UPSTREAM, None, 3, 0.1, seed=0)
    assert size == pytest.approx(len(REPLAYABLE))


def test_what_is_forgotten_more_is_replayed_more():
    scores = {e.example_id: float(i) for i, e in enumerate(UPSTREAM)}
    chosen, _ = choose(UPSTREAM, scores, 4, 0.1, seed=0)
    last = sorted(REPLAYABLE, key=lambda name: int(name.split("-")[1]))[-4:]
    assert {example.example_id for example in chosen} == set(last)


def test_a_prediction_that_lacks_an_example_is_refused_with_its_id():
    scores = {e.example_id: 0.0 for e in UPSTREAM[1:]}
    with pytest.raises(LetheError, match="'a-00000'"):
        choose(UPSTREAM, scores, 4, 0.1, seed=0)


@pytest.mark.parametrize(
    ("examples", "ratio", "expected"), [(8000, 1 / 32, 250), (400, 0.125, 50), (8, 0.01, 1)]
)
def test_the_ratio_gives_the_number_of_replayed_examples(examples, ratio, expected):
    assert draws(examples, ratio) == expected
