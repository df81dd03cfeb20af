import numpy as np
import pytest

from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import (
    CHOICES,
    choose_probes,
    greedy_columns,
    half_of,
    probe_curve,
    probes_needed,
    random_probes,
)

RNG = np.random.default_rng(0)
FACTORS = RNG.normal(size=(3, 120)) * np.exp(RNG.normal(size=120))
Z = RNG.normal(size=(14, 3)) @ FACTORS + 0.3 * RNG.normal(size=(14, 120))
DOMAINS = ["news"] * 60 + ["code"] * 40 + ["forum"] * 20


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("k", [1, 12, 120])
def test_k_different_probes_are_chosen_the_same_every_time(choice, k):
    index = choose_probes(Z, k, choice, seed=1, domains=DOMAINS)
    assert len(np.unique(index)) == k and (np.diff(index) > 0).all()
    np.testing.assert_array_equal(index, choose_probes(Z, k, choice, seed=1, domains=DOMAINS))


@pytest.mark.parametrize("choice", CHOICES)
def test_only_allowed_columns_are_probed(choice):
    allowed = np.arange(120) % 3 == 0
    index = choose_probes(Z, 20, choice, domains=DOMAINS, allowed=allowed)
    assert (index % 3 == 0).all()
    with pytest.raises(ValueError, match="41 probes wanted, 40 examples"):
        choose_probes(Z, 41, choice, domains=DOMAINS, allowed=allowed)


@pytest.mark.parametrize("choice", ["leverage", "a_optimal"])
def test_what_no_training_task_knows_is_not_probed_by_design(choice):
    """Filled in, such columns look as if they told everything about a task's offset."""
    offsets = np.random.default_rng(5).normal(0, 5, (14, 1))
    train = np.hstack([np.full((14, 100), np.nan), Z + offsets])
    index = choose_probes(train, 10, choice, seed=1)
    assert (index >= 100).all()
    np.testing.assert_array_equal(index - 100, choose_probes(Z + offsets, 10, choice, seed=1))
    with pytest.raises(ValueError, match="121 probes wanted, training rows know 120"):
        choose_probes(train, 121, choice)


def test_stratified_probes_hold_every_domain_by_its_share():
    index = choose_probes(Z, 12, "stratified", seed=3, domains=DOMAINS)
    counts = [sum(DOMAINS[i] == name for i in index) for name in ("news", "code", "forum")]
    assert counts == [6, 4, 2]


def test_stratified_probes_without_domains_are_refused():
    with pytest.raises(ValueError, match="120 domains"):
        choose_probes(Z, 3, "stratified")


def test_an_unknown_choice_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="a_optimal"):
        choose_probes(Z, 3, "best")


def test_a_optimal_probes_leave_less_posterior_variance_than_random_ones():
    method = Gaussian(noise=1.0).fit(Z)
    columns = np.vstack([Z, np.ones(120)])

    def left(index):
        solver = method.solver(method.model_.parts, columns[:, index])
        return solver.variance(columns, 1.0).sum()

    chosen = left(choose_probes(Z, 6, "a_optimal"))
    assert all(chosen < left(random_probes(120, 6, seed)) for seed in range(20))


def test_of_two_columns_that_tell_the_same_the_less_noisy_is_probed():
    features = np.array([[1.0, 1.0, 0.1]])
    chosen = greedy_columns(features, np.array([2.0, 1.0, 0.5]), np.eye(1), 1)
    assert chosen.tolist() == [1]


def test_halves_are_disjoint_halves_that_differ_by_seed():
    assert half_of(121, 0).sum() == 60
    assert (half_of(120, 0) != half_of(120, 1)).any()


def test_the_curve_of_error_falls_and_tells_how_many_probes_are_needed():
    curve = probe_curve(Z, [2, 8, 32], seeds=range(2))
    assert curve[2] > curve[8] > curve[32]
    assert probes_needed(curve, curve[8]) == 8
    assert 8 < probes_needed(curve, (curve[8] + curve[32]) / 2) < 32
    assert probes_needed(curve, 10.0) == 2
    assert probes_needed(curve, 0.0) is None


def greedy_by_definition(features, variance, spread, k):
    """Every gain from the posterior covariance itself."""
    posterior = np.eye(len(features))
    columns = []
    for _ in range(k):
        weighted = posterior @ features
        gain = np.einsum("in,in->n", weighted, spread @ weighted)
        gain /= np.einsum("in,in->n", features, weighted) + variance
        gain[columns] = -np.inf
        best = int(np.argmax(gain))
        columns.append(best)
        direction = weighted[:, best]
        posterior -= np.outer(direction, direction) / (
            features[:, best] @ direction + variance[best]
        )
    return columns


def test_updated_gains_choose_as_gains_by_definition():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(12, 400)) * np.geomspace(3, 0.01, 12)[:, None]
    variance = np.exp(rng.normal(size=400)) * 0.3
    spread = features @ features.T
    chosen = greedy_columns(features, variance=variance, spread=spread, k=100)
    assert chosen.tolist() == greedy_by_definition(features, variance, spread, 100)


def variance_left(train, index):
    method = Gaussian(noise=1.0).fit(train)
    columns = np.vstack([train, np.ones(train.shape[1])])
    solver = method.solver(method.model_.parts, columns[:, index])
    return solver.variance(columns, 1.0).sum()


def test_a_budget_buys_more_information_if_probes_are_chosen_by_cost():
    cost = np.exp(np.random.default_rng(4).normal(3, 1, 120)).round() + 1
    budget = float(np.median(cost)) * 8
    by_cost = choose_probes(Z, None, "a_optimal", cost=cost, budget=budget)
    assert cost[by_cost].sum() <= budget
    # Without costs, as many of the best probes as the budget pays for.
    affordable = []
    for k in range(1, 30):
        index = choose_probes(Z, k, "a_optimal")
        if cost[index].sum() <= budget:
            affordable = index
    assert variance_left(Z, by_cost) < variance_left(Z, affordable)
    few = choose_probes(Z, 3, "a_optimal", cost=cost, budget=budget)
    assert len(few) == 3


def test_equal_costs_change_nothing():
    index = choose_probes(Z, 9, "a_optimal", cost=np.full(120, 7.0))
    np.testing.assert_array_equal(index, choose_probes(Z, 9, "a_optimal"))


def test_costs_that_make_no_sense_are_refused():
    cost = np.full(120, 5.0)
    with pytest.raises(ValueError, match="buys no probe; the cheapest costs 5"):
        choose_probes(Z, None, "a_optimal", cost=cost, budget=4)
    with pytest.raises(ValueError, match="a number above 0 per column"):
        choose_probes(Z, 4, "a_optimal", cost=cost - 5)
    with pytest.raises(ValueError, match="needs the cost of each example"):
        choose_probes(Z, None, "a_optimal")
    with pytest.raises(ValueError, match="a_optimal only .value seen: 'random'"):
        choose_probes(Z, 4, "random", cost=cost)


def test_with_a_budget_fewer_examples_may_be_allowed_than_the_largest_number_of_probes():
    allowed = np.zeros(Z.shape[1], dtype=bool)
    allowed[:5] = True
    index = choose_probes(Z, 30, "a_optimal", allowed=allowed, cost=np.ones(Z.shape[1]), budget=3.0)
    assert len(index) == 3 and set(index) <= set(range(5))
