import json

import numpy as np
import pandas as pd
import pytest

from lethe.analysis import low_rank, noise
from lethe.matrix.forgetting_matrix import Matrix
from lethe.report import plots
from lethe.report.findings import Findings


def repeats(groups, count, examples, sigma, seed=0):
    """Groups of repeats: a signal of each group's own plus noise of this sigma."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(groups, 1, examples))
    return list(signal + sigma * rng.normal(size=(groups, count, examples)))


def test_sigma_is_recovered_whatever_the_repeats_share():
    found = noise.pooled_variance(repeats(5, 3, 4000, 0.2))
    assert np.sqrt(found.mean()) == pytest.approx(0.2, rel=0.02)


def test_the_variance_is_that_of_numpy_for_one_group_and_pooled_for_more():
    a, b = repeats(2, 4, 6, 1.0)
    np.testing.assert_allclose(noise.pooled_variance([a]), a.var(axis=0, ddof=1))
    pooled = (3 * a.var(axis=0, ddof=1) + 2 * b[:3].var(axis=0, ddof=1)) / 5
    np.testing.assert_allclose(noise.pooled_variance([a, b[:3]]), pooled)


def test_unknown_cells_are_left_out_and_a_column_of_them_stays_unknown():
    group = np.array([[1.0, np.nan, 2.0], [3.0, 5.0, np.nan], [np.nan, np.nan, 4.0]])
    np.testing.assert_allclose(noise.pooled_variance([group]), [2.0, np.nan, 2.0])


def test_contrasts_hold_the_noise_and_nothing_that_repeats_share():
    (group,) = repeats(1, 4, 5000, 0.3)
    drawn = noise.contrasts(group)
    assert drawn.shape == (3, 5000)
    np.testing.assert_allclose(noise.contrasts(group + 7.0), drawn, atol=1e-12)
    np.testing.assert_allclose(np.square(drawn).mean(axis=0), noise.pooled_variance([group]))


def matrix(rank, sigma, tasks=20, examples=600, seed=1):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(tasks, rank)) @ rng.normal(size=(rank, examples))
    return signal + sigma * rng.normal(size=(tasks, examples))


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_the_rank_above_independent_noise_is_the_signals(rank):
    z = matrix(rank, sigma=0.5)
    found, limit = noise.rank_above_noise(z, noise.independent_noise(np.full(600, 0.5), 20))
    assert found == rank
    assert 0.5 * (np.sqrt(600) - np.sqrt(20)) < limit < 0.5 * (np.sqrt(600) + np.sqrt(20)) * 1.1


def test_noise_that_moves_all_examples_at_once_hides_more_than_independent_noise():
    rng = np.random.default_rng(2)
    together = rng.normal(size=(8, 1)) @ rng.normal(size=(1, 600))
    z = matrix(1, 0.01, seed=3) * 0.3 + rng.normal(size=(20, 1)) @ together[:1]
    alone, _ = noise.rank_above_noise(z, noise.independent_noise(together.std(axis=0), 20))
    moved, _ = noise.rank_above_noise(z, noise.correlated_noise(together, 20))
    assert moved < alone


@pytest.mark.parametrize("rank", [0, 3])
def test_shuffling_rows_finds_the_rank_of_the_association(rank):
    assert noise.rank_above_shuffled(matrix(rank, 0.5), additive=False) == rank


def test_example_means_are_a_component_until_they_are_taken_off():
    rng = np.random.default_rng(4)
    z = rng.normal(size=600) + rng.normal(size=(20, 1)) + 0.5 * rng.normal(size=(20, 600))
    assert noise.rank_above_shuffled(z, additive=False) >= 1
    assert noise.rank_above_shuffled(z, additive=True) == 0


def additive(tasks, spread, seed):
    """Task means plus example means plus noise whose size differs between tasks."""
    rng = np.random.default_rng([seed, tasks])
    sizes = np.exp(spread * rng.normal(size=(tasks, 1)))
    means = rng.normal(size=300) + rng.normal(size=(tasks, 1))
    return means + sizes * rng.normal(size=(tasks, 300))


@pytest.mark.parametrize("spread", [0.22, 0.5])
@pytest.mark.parametrize("tasks", [6, 12, 29])
def test_tasks_that_differ_in_spread_are_no_structure(tasks, spread):
    drawn = [additive(tasks, spread, seed) for seed in range(16)]
    found = [noise.rank_above_shuffled(z, additive=True) > 0 for z in drawn]
    # At a level of 5 percent three or more of 16 are a matter of 4 in 100.
    assert sum(found) <= 2


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("rank", [2, 5])
def test_as_many_components_are_found_as_there_are_among_tasks_that_differ_in_spread(rank, means):
    found = []
    for seed in range(8):
        rng = np.random.default_rng([seed, 31])
        sizes = np.exp(0.22 * rng.normal(size=(29, 1)))
        z = rng.normal(size=(29, 600)) + rng.normal(size=(29, rank)) @ rng.normal(size=(rank, 600))
        common = rng.normal(size=600) + rng.normal(size=(29, 1)) if means else 0
        found.append(noise.rank_above_shuffled(sizes * z + common, additive=means))
    # One component too many has a chance of 5 percent each time.
    assert found.count(rank) >= 7


def test_one_or_two_tasks_have_no_structure_beyond_means():
    for seed in range(20):
        z = additive(3, 0.5, seed)
        assert noise.rank_above_shuffled(z[:1], additive=True) == 0
        assert noise.rank_above_shuffled(z[:1], additive=False) == 0
        assert noise.rank_above_shuffled(z[:2], additive=True) == 0


@pytest.fixture
def floor():
    rng = np.random.default_rng(5)
    z = matrix(2, 0.3, tasks=12, examples=900)
    true = matrix(2, 0.0, tasks=12, examples=900)
    trainings = {
        "a": true[0] + 0.3 * rng.normal(size=(3, 900)),
        "b": true[1] + 0.3 * rng.normal(size=(3, 900)),
    }
    measurements = [line + 0.01 * rng.normal(size=(2, 900)) for line in trainings["a"]]
    return z, trainings, measurements


def test_the_noise_floor_tells_training_from_engine_and_the_rank_from_both(floor):
    report, training, engine = noise.noise_floor(*floor)
    assert report["sigma"]["training"] == pytest.approx(0.3, rel=0.05)
    assert report["sigma"]["engine"] == pytest.approx(0.01, rel=0.1)
    assert set(report["rank_above"].values()) == {2}
    assert report["r2_ceiling"] == pytest.approx(1 - 0.09 / floor[0].var(), rel=0.1)
    assert training.shape == engine.shape == (900,)
    assert json.loads(json.dumps(report)) == report


def test_the_same_repeats_give_the_same_floor(floor):
    assert noise.noise_floor(*floor)[0] == noise.noise_floor(*floor)[0]


def test_without_measurements_the_engine_is_unknown_not_zero(floor):
    z, trainings, _ = floor
    report, _, engine = noise.noise_floor(z, trainings, [])
    assert report["sigma"]["engine"] is None and np.isnan(engine).all()


def test_columns_that_a_repeat_lacks_are_left_out_of_the_ranks(floor):
    z, trainings, measurements = floor
    trainings["a"][1, 5] = np.nan
    z[3, 8] = np.nan
    assert noise.noise_floor(z, trainings, measurements)[0]["columns"] == 898


@pytest.mark.parametrize("measured", [False, True])
def test_the_rank_curve_shows_the_noise_floor_where_it_was_measured(floor, measured):
    z = Matrix(floor[0], [f"t{i}" for i in range(12)], [f"e{j}" for j in range(900)])
    curve = pd.DataFrame(low_rank.rank_curve(z.values).records())
    found = {"m": noise.noise_floor(*floor)[0]} if measured else {}
    figure = plots.draw_figure("rank_curves", Findings({}, {"m": z}, {"m": curve}, {}, noise=found))
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert ("m, rank 2: last above noise" in legend) == ("m, noise" in legend) == measured
