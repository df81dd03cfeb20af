"""Strategies choose by what they say they need, and never a held-out example."""

import numpy as np
import pytest
from helpers import tiny

from lethe.config.replay_settings import DURING_TRAINING, Replay
from lethe.config.replay_settings import STRATEGIES as NAMES
from lethe.data.examples import Example, UpstreamExample
from lethe.errors import LetheError
from lethe.replay.draws import draw_softmax, indices_by_domain, softmax_weights
from lethe.replay.strategies import STRATEGIES, Coverage, Importance, Pool, choose_replayed

UPSTREAM = tiny.upstream(24)
REPLAYABLE = {example.example_id for example in UPSTREAM if example.split == "replayable"}
# The others are tested with a training in test_phases.py.
BEFORE_TRAINING = [name for name in STRATEGIES if name not in ("none", *DURING_TRAINING)]
GENERATOR = np.random.default_rng(5)
ROWS = {example.example_id: GENERATOR.normal(1, 1, 6) for example in UPSTREAM}
SCORES = {example.example_id: float(i) for i, example in enumerate(UPSTREAM)}


def run_of(strategy, **changes):
    settings = {"strategies": list(dict.fromkeys(["random", strategy]))}
    return Replay(**settings | changes).resolve(strategy)


def choose(upstream, scores, count, temperature=0.1, *, seed=0, strategy="oracle", **changes):
    run = run_of(strategy if scores else "random", temperature=temperature, **changes)
    pool = Pool.of(
        upstream,
        forgetting=scores,
        base_losses=scores,
        training_rows=ROWS,
        gradient_products=scores and {name: -value for name, value in scores.items()},
        gradient_profiles=ROWS,
    )
    return choose_replayed(pool, run, count, [seed])


def pool_of(domains, forgetting, rows=None):
    examples = []
    for i, domain in enumerate(domains):
        example = UpstreamExample(f"{domain}-{i}", domain, "replayable", Example(text=f"text {i}"))
        examples.append(example)
    columns = None if rows is None else np.asarray(rows, float)
    return Pool(examples, np.asarray(forgetting, float), np.asarray(forgetting, float), columns)


def test_weights_that_underflow_are_drawn_in_their_order_and_not_repeated():
    """1,000 nats over a temperature of 0.1: all weights but the first are exactly zero."""
    scores = np.array([0.0, 300, 1000, 600])
    assert np.count_nonzero(softmax_weights(scores, 0.1)) == 1
    assert draw_softmax(scores / 0.1, 4, seed=0).tolist() == [2, 3, 1, 0]
    everything = {e.example_id: 100.0 * i for i, e in enumerate(UPSTREAM)}
    chosen, choice = choose(UPSTREAM, everything, len(REPLAYABLE))
    assert {example.example_id for example in chosen} == REPLAYABLE
    assert choice.effective_sample_size == pytest.approx(1)


@pytest.mark.parametrize("count", [1, 5, 18, 40])
def test_held_out_examples_are_never_replayed(count):
    """However much they would be forgotten, and whatever the strategy."""
    scores = {e.example_id: 100.0 if e.split == "heldout" else 0.0 for e in UPSTREAM}
    for strategy in BEFORE_TRAINING:
        for draw in ("softmax", "top"):
            chosen, _ = choose(UPSTREAM, scores, count, strategy=strategy, draw=draw)
            assert len(chosen) == count
            assert {example.example_id for example in chosen} <= REPLAYABLE


@pytest.mark.parametrize("strategy", BEFORE_TRAINING)
def test_every_strategy_replays_no_example_twice_before_all_were_and_repeats_its_choice(strategy):
    scores = {name: value % 5 for name, value in SCORES.items()}
    for count in (7, len(REPLAYABLE)):
        chosen, choice = choose(UPSTREAM, scores, count, 1.0, strategy=strategy)
        again, _ = choose(UPSTREAM, scores, count, 1.0, strategy=strategy)
        assert [e.example_id for e in chosen] == [e.example_id for e in again]
        assert len({e.example_id for e in chosen}) == count
        assert 1 <= choice.effective_sample_size <= choice.pool == len(REPLAYABLE)


def test_every_strategy_of_the_settings_can_be_drawn_by_and_says_what_it_needs():
    assert set(STRATEGIES) == set(NAMES)
    for strategy in STRATEGIES.values():
        assert "eeds" in type(strategy).__doc__


def test_a_strategy_without_what_it_needs_is_refused():
    pool = Pool.of(UPSTREAM)
    for name, strategy in STRATEGIES.items():
        if strategy.needs:
            with pytest.raises(LetheError, match=f"'{name}' needs {strategy.needs[0]}"):
                choose_replayed(pool, run_of(name), 3, [0])


def test_without_scores_all_replayable_examples_weigh_the_same():
    _, choice = choose(UPSTREAM, None, 3)
    assert choice.effective_sample_size == pytest.approx(len(REPLAYABLE))


def test_what_is_forgotten_more_is_replayed_more():
    chosen, _ = choose(UPSTREAM, SCORES, 4)
    last = sorted(REPLAYABLE, key=lambda name: int(name.split("-")[1]))[-4:]
    assert {example.example_id for example in chosen} == set(last)
    top, choice = choose(UPSTREAM, SCORES, 4, 100.0, draw="top")
    assert {example.example_id for example in top} == set(last)
    assert choice.effective_sample_size == 4


def test_the_base_loss_is_replayed_from_the_highest_and_from_the_median():
    pool = pool_of("aaaaa", [5, 1, 3, 4, 2])
    hardest, _ = choose_replayed(pool, run_of("perplexity", draw="top"), 2, [0])
    assert [e.example_id for e in hardest] == ["a-0", "a-3"]
    middle, _ = choose_replayed(pool, run_of("perplexity_median", draw="top"), 3, [0])
    assert middle[0].example_id == "a-2"
    assert {e.example_id for e in middle[1:]} == {"a-3", "a-4"}


@pytest.mark.parametrize("strategy", ["random", "balanced", "gaussian", "coverage"])
def test_a_pool_without_examples_is_refused(strategy):
    with pytest.raises(LetheError, match=f"replay {strategy}: no upstream example can be"):
        choose_replayed(pool_of("", []), run_of(strategy), 3, [0])


def test_balanced_replay_takes_as_many_from_every_domain():
    pool = pool_of("aaaaaaaabbbbcc", np.zeros(14))
    for seed in range(10):
        chosen, _ = choose_replayed(pool, run_of("balanced"), 6, [seed])
        assert sorted(e.domain for e in chosen) == list("aabbcc")
    chosen, _ = choose_replayed(pool, run_of("balanced"), 14, [0])
    assert len({e.example_id for e in chosen}) == 14


def test_the_domain_strategy_weighs_domains_by_their_mean_and_draws_at_random_within():
    forgetting = [0.0, 2.0, np.nan, 3.0, 3.0, 3.0]
    pool = pool_of("aaabbb", forgetting)
    scores = STRATEGIES["domain"].scores(pool)
    assert scores == pytest.approx([1, 1, np.nan, 3, 3, 3], nan_ok=True)
    firsts = set()
    for seed in range(30):
        chosen, _ = choose_replayed(pool, run_of("domain", draw="top"), 1, [seed])
        firsts.add(chosen[0].example_id)
    assert firsts == {"b-3", "b-4", "b-5"}, "equal scores are ordered by the seed"


def test_mir_takes_the_most_forgotten_of_each_group_and_the_papers_code_the_least():
    values = np.random.default_rng(0).permutation(60).astype(float)
    pool = pool_of("a" * 60, values)
    most, _ = choose_replayed(pool, run_of("mir"), 2, [0])
    least, _ = choose_replayed(pool, run_of("mir_paper_code"), 2, [0])
    forgotten = {f"a-{i}": value for i, value in enumerate(values)}
    assert max(forgotten[e.example_id] for e in most) == 59
    assert min(forgotten[e.example_id] for e in most) >= 29
    assert min(forgotten[e.example_id] for e in least) == 0


def test_mir_has_as_many_candidates_and_the_order_that_the_settings_say():
    values = np.random.default_rng(1).permutation(24).astype(float)
    pool = pool_of("a" * 24, values)
    orders = {}
    for strategy in ("mir", "mir_measured", "mir_paper_code"):
        for order in ("largest", "paper_code"):
            run = run_of(strategy, mir_candidates=6, mir_order=order)
            orders[strategy, order] = choose_replayed(pool, run, 4, [3])[1].indices
    groups = draw_softmax(np.zeros(24), 24, [3]).reshape(4, 6)
    most = [group[np.argmax(values[group])] for group in groups]
    least = [group[np.argmin(values[group])] for group in groups]
    for strategy in ("mir", "mir_measured"):
        assert orders[strategy, "largest"].tolist() == most
        assert orders[strategy, "paper_code"].tolist() == least
    assert orders["mir_paper_code", "largest"].tolist() == least


class CountedLooks:
    """A domain's name whose look-ups are counted, through the list of all domains."""

    def __init__(self, domains):
        self.domains = domains
        self.looks = 0

    def tolist(self):
        self.looks += len(self.domains)
        return list(self.domains)


def test_every_example_is_looked_at_once_however_many_domains_there_are():
    domains = CountedLooks([f"d{i % 50}" for i in range(1000)])
    members = indices_by_domain(domains)
    assert domains.looks == 1000
    assert len(members) == 50
    assert members[1].tolist() == list(range(1, 1000, 50))
    pool = pool_of("abba", np.zeros(4))
    assert pool.domains is pool.domains, "made once"


def test_means_of_domains_are_those_of_a_mask_to_the_bit():
    rng = np.random.default_rng(2)
    names = rng.choice(list("abcdefg"), 500)
    forgetting = np.where(rng.random(500) < 0.1, np.nan, rng.normal(size=500))
    scores = STRATEGIES["domain"].scores(pool_of(names, forgetting))
    for name in "abcdefg":
        members = (names == name) & np.isfinite(forgetting)
        assert (scores[members] == forgetting[members].mean()).all()
    assert np.isnan(scores[np.isnan(forgetting)]).all()


def test_gradients_that_oppose_the_tasks_are_replayed_most_on_a_scale_of_0_to_1():
    products = np.array([3.0, -1.0, np.nan, 1.0])
    pool = Pool(pool_of("aaaa", np.zeros(4)).examples, gradient_products=products)
    scores = STRATEGIES["gradient"].scores(pool)
    assert scores == pytest.approx([0, 1, np.nan, 0.5], nan_ok=True)
    equal = Pool(pool.examples, gradient_products=np.ones(4))
    assert STRATEGIES["gradient"].scores(equal).tolist() == [0] * 4


def test_without_replay_no_example_is_chosen():
    chosen, choice = choose_replayed(Pool.of(UPSTREAM), run_of("none"), 3, [0])
    assert chosen == []
    assert not choice.is_random


def test_gradient_matching_chooses_a_set_with_the_mean_gradient_of_the_pool():
    examples = pool_of("a" * 60, np.zeros(60)).examples
    rng = np.random.default_rng(2)
    # The second task's gradients are a hundred times as long, and count no more.
    profiles = rng.normal([[1.0], [-200.0], [0.5]], [[1.0], [100.0], [2.0]], (3, 60))
    pool = Pool(examples, gradient_profiles=profiles)
    choice = STRATEGIES["gradient_matching"].choose(pool, run_of("random"), 12, [0])
    scaled = profiles / profiles.std(axis=1, keepdims=True)

    def distance(indices):
        return np.linalg.norm(scaled[:, indices].mean(axis=1) - scaled.mean(axis=1))

    draws = [distance(rng.permutation(60)[:12]) for _ in range(200)]
    assert distance(choice.indices) < np.quantile(draws, 0.05)


def test_gradient_matching_takes_the_nearest_to_the_mean_first_and_no_unknown_one():
    pool = Pool(
        pool_of("aaaaa", np.zeros(5)).examples,
        gradient_profiles=np.array(
            [[0.0, 2.0, 5.0, np.nan, 1.0], [3.0, 3.0, 3.0, 3.0, 3.0], np.full(5, np.nan)]
        ),
    )
    choice = STRATEGIES["gradient_matching"].choose(pool, run_of("random"), 4, [0])
    # The mean is 2. The sums of the first two, three and four come as near to 4, 6 and 8 as any.
    assert choice.indices.tolist() == [1, 4, 2, 0]
    unknown = Pool(pool.examples, gradient_profiles=np.full((2, 5), np.nan))
    with pytest.raises(LetheError, match="no replayable example has a gradient"):
        STRATEGIES["gradient_matching"].choose(unknown, run_of("random"), 2, [0])


def dense_coverage(columns, prediction, count, noise):
    """The formula as it stands, with the whole covariance of the examples."""
    covariance = columns.T @ columns
    added = noise * np.diag(covariance).mean()
    residual, order = prediction.copy(), []
    mean = np.full(len(prediction), 1 / len(prediction))
    for _ in range(count):
        gain = residual * (covariance @ mean) / (np.diag(covariance) + added)
        gain[order] = -np.inf
        best = int(np.argmax(gain))
        order.append(best)
        factor = covariance[:, best] / (covariance[best, best] + added)
        residual = residual - factor * residual[best]
        covariance = covariance - np.outer(factor, covariance[best])
    return order


def test_coverage_conditions_the_prediction_on_every_example_it_takes():
    rows = np.random.default_rng(3).normal(0.5, 1, (5, 20))
    prediction = np.random.default_rng(4).normal(1, 1, 20)
    pool = pool_of("a" * 20, prediction, rows)
    for noise in (0.1, 30.0):
        choice = Coverage(noise=noise).choose(pool, run_of("coverage"), 12, [0])
        expected = dense_coverage(rows / np.sqrt(5), prediction, 12, noise)
        assert choice.indices.tolist() == expected


def test_coverage_takes_no_more_than_its_cap_from_one_domain_and_leaves_out_the_unknown():
    rows = np.ones((3, 40))
    prediction = np.concatenate([np.full(20, 5.0), np.full(20, 1.0)])
    prediction[1] = np.nan
    pool = pool_of("a" * 20 + "bbbbbbbbbb" + "c" * 10, prediction, rows)
    chosen, _ = choose_replayed(pool, run_of("coverage"), 10, [0])
    domains = [example.domain for example in chosen]
    assert domains.count("a") == 4, "three domains share ten draws"
    assert "a-1" not in {example.example_id for example in chosen}
    everything, _ = choose_replayed(pool, run_of("coverage"), 39, [0])
    assert len({example.example_id for example in everything}) == 39


def test_importance_sampling_estimates_the_mean_over_all_examples_without_bias():
    """A value that grows with forgetting is estimated with less noise than by a random draw."""
    rng = np.random.default_rng(3)
    forgetting = rng.uniform(0.05, 1, 60)
    pool = pool_of(["a", "b", "c"] * 20, forgetting)
    values = {"even": np.ones(60), "forgotten": forgetting, "other": rng.normal(size=60)}
    estimates = {name: [] for name in values}
    random = []
    for seed in range(1000):
        choice = Importance().choose(pool, run_of("importance"), 10, [seed])
        assert choice.weights.mean() == pytest.approx(1)
        # 1 / expected draws, of which `weights` are a multiple.
        inverse = forgetting.sum() / 10 / forgetting[choice.indices]
        np.testing.assert_allclose(choice.weights, inverse / inverse.mean())
        for name, value in values.items():
            estimates[name].append((inverse * value[choice.indices]).sum() / 60)
        drawn = choose_replayed(pool, run_of("random"), 10, [seed])[1].indices
        random.append(forgetting[drawn].mean())
    for name, value in values.items():
        error = np.std(estimates[name]) / 1000**0.5
        assert abs(np.mean(estimates[name]) - value.mean()) < 5 * error + 1e-9
    assert np.std(estimates["forgotten"]) < 0.01 * np.std(random)


def test_importance_sampling_draws_what_is_hardly_forgotten_as_if_it_were_forgotten_a_little():
    pool = pool_of(["a"] * 4, [-0.5, 0.0, np.nan, 0.98])
    counts = np.zeros(4)
    for seed in range(500):
        choice = Importance().choose(pool, run_of("importance"), 1, [seed])
        assert (choice.pool, choice.weights.tolist()) == (3, [1.0])
        counts[choice.indices] += 1
    assert counts[2] == 0 and 0 < counts[0] < 40 and 0 < counts[1] < 40
    with pytest.raises(LetheError, match="no replayable example has a score"):
        Importance().choose(pool_of(["a"], [np.nan]), run_of("importance"), 1, [0])


def test_importance_sampling_weighs_all_alike_where_all_are_forgotten_alike():
    chosen, choice = choose_replayed(pool_of(["a"] * 6, [0.3] * 6), run_of("importance"), 6, [0])
    assert choice.weights.tolist() == [1.0] * 6 and choice.is_random and len(chosen) == 6


@pytest.mark.parametrize("correction", [0, 0.5, 1])
def test_importance_sampling_undoes_its_draw_as_far_as_it_is_told(correction):
    forgetting = np.array([0.1, 0.2, 0.4, 0.8] * 5)
    run = run_of("importance", importance_correction=correction)
    choice = Importance().choose(pool_of(["a"] * 20, forgetting), run, 8, [0])
    drawn = forgetting[choice.indices]
    assert len(set(drawn)) > 1
    expected = (drawn / drawn[0]) ** -correction
    np.testing.assert_allclose(choice.weights / choice.weights[0], expected)
    assert choice.weights.mean() == pytest.approx(1)


def test_coverage_breaks_ties_by_the_order_of_the_pool():
    pool = pool_of("abab", [1, 1, 1, 1], np.ones((2, 4)))
    chosen, _ = choose_replayed(pool, run_of("coverage"), 2, [0])
    other, _ = choose_replayed(pool, run_of("coverage"), 2, [9])
    assert [e.example_id for e in chosen] == [e.example_id for e in other] == ["a-0", "b-1"]


def test_a_draw_whose_weights_are_nearly_equal_is_random_in_effect():
    _, choice = choose(UPSTREAM, SCORES, 4, 1000.0)
    assert choice.is_random
    assert not choose(UPSTREAM, SCORES, 4, 1.0)[1].is_random


def test_a_prediction_that_lacks_an_example_is_refused_with_its_id():
    scores = {e.example_id: 0.0 for e in UPSTREAM[1:]}
    with pytest.raises(LetheError, match="'a-00000'"):
        choose(UPSTREAM, scores, 4, 0.1, seed=0)


@pytest.mark.parametrize("strategy", ["mir", "mir_measured", "mir_paper_code"])
def test_mir_without_any_measured_example_is_refused(strategy):
    with pytest.raises(LetheError, match="no replayable example has a score"):
        choose_replayed(pool_of("aaa", np.full(3, np.nan)), run_of(strategy), 2, [0])
