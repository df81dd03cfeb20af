import numpy as np
import pytest

from lethe.completion import METHODS, foldin, intervals
from lethe.completion.foldin import Prior, with_ones
from lethe.completion.intervals import (
    TRAINING_WEIGHT,
    Calibration,
    Conformal,
    LeftOutRow,
    calibrate,
    shrunk_size,
)


def noisy(tasks, seed=0):
    """Low rank, noise that differs by column, heavy tails."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(7)
    factors, spread = shared.normal(size=(3, 300)), np.exp(shared.normal(0, 0.7, 300))
    return rng.normal(size=(tasks, 3)) @ factors + spread * rng.standard_t(4, (tasks, 300))


@pytest.mark.parametrize(
    "make",
    [
        METHODS["gaussian"],
        lambda: Conformal(METHODS["gaussian"]),
        lambda: Conformal(METHODS["knn"]),
    ],
    ids=["gaussian", "conformal gaussian", "conformal knn"],
)
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_intervals_hold_the_stated_share_of_cells_of_many_unseen_tasks(make, level):
    method, new = make().fit(noisy(30)), noisy(60, seed=1)
    inside = []
    for seed in range(5):
        index = np.random.default_rng(seed).choice(300, 30, replace=False)
        low, high = method.predict_interval(index, new[:, index], level)
        inside.append(np.delete((low <= new) & (new <= high), index, axis=1).mean())
    assert np.mean(inside) == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_cells_that_were_filled_in_count_as_nothing_measured(share):
    """Filled in they lie where they are expected, and intervals would be too narrow."""
    train, new = noisy(30), noisy(60, seed=1)
    train[np.random.default_rng(3).random(train.shape) < share] = np.nan
    method, index = METHODS["gaussian"]().fit(train), np.arange(0, 300, 10)
    low, high = method.predict_interval(index, new[:, index], 0.9)
    inside = np.delete((low <= new) & (new <= high), index, axis=1).mean()
    assert inside == pytest.approx(0.9, abs=0.03)


def test_intervals_are_wider_where_columns_are_noisier():
    method, new = METHODS["gaussian"]().fit(noisy(30)), noisy(1, seed=2)[0]
    index = np.arange(0, 300, 10)
    low, high = method.predict_interval(index, new[index])
    shared = np.random.default_rng(7)
    shared.normal(size=(3, 300))  # The factors, drawn before the spread.
    spread = np.exp(shared.normal(0, 0.7, 300))
    assert np.corrcoef(np.log(high - low), np.log(spread))[0, 1] > 0.5


def test_a_task_whose_probes_are_worse_predicted_gets_wider_intervals():
    method, new = METHODS["gaussian"]().fit(noisy(30)), noisy(1, seed=3)[0]
    index = np.arange(0, 300, 3)
    worse = new[index] + np.random.default_rng(5).normal(0, 8, len(index))
    widths = [np.ptp(method.predict_interval(index, v), axis=0).mean() for v in (new[index], worse)]
    assert widths[1] > 1.2 * widths[0]


def test_without_probes_a_task_has_the_usual_size():
    assert shrunk_size(np.empty((2, 0)), 3.0).tolist() == [1, 1]


def test_calibration_takes_quantiles_of_left_out_residuals():
    residuals = np.linspace(-1, 1, 201)
    row = LeftOutRow(residuals, np.full(201, 0.5), np.empty(0))
    assert calibrate([row]).reach(0.8) == pytest.approx(1.6, abs=0.02)


def test_intervals_need_three_training_tasks():
    with pytest.raises(ValueError, match="at least 3"):
        Conformal(METHODS["knn"]).fit(noisy(2))


@pytest.mark.parametrize("level", [0, 1, 90])
def test_a_level_outside_0_to_1_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        METHODS["gaussian"]().fit(noisy(5)).predict_interval([0], [0.0], level)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [0, 1, 10, 200])
def test_the_pooled_reach_is_the_weighted_quantile_of_training_and_probe_scores(count, level):
    rng = np.random.default_rng(count)
    calibration = Calibration(scores=np.sort(np.abs(rng.normal(size=50_000))), strength=10.0)
    probes = 1.5 * rng.standard_t(3, (2, count))
    reaches = calibration.pooled_reach(level, probes)
    for reach, row in zip(reaches, probes, strict=True):
        own = np.abs(row) / calibration.task_size(row)
        weights = np.append(np.full(50_000, TRAINING_WEIGHT / 50_000), np.ones(count))
        scores = np.append(calibration.scores, own)
        order = np.argsort(scores)
        covered = np.cumsum(weights[order]) >= level * weights.sum() - 1e-9
        assert reach == pytest.approx(scores[order][np.argmax(covered)], abs=2e-3)


def test_without_probes_the_reach_is_that_of_the_training_tasks():
    calibration = Calibration(scores=np.linspace(0, 2, 201), strength=1.0)
    np.testing.assert_allclose(
        calibration.pooled_reach(0.8, np.empty((3, 0))), calibration.reach(0.8)
    )


def test_intervals_of_several_levels_are_those_of_each():
    method, new = METHODS["gaussian"]().fit(noisy(12)), noisy(3, seed=1)
    index = np.arange(0, 300, 20)
    together = method.predict_intervals(index, new[:, index], [0.5, 0.9])
    for level, ends in zip([0.5, 0.9], together, strict=True):
        expected = method.predict_interval(index, new[:, index], level)
        np.testing.assert_allclose(ends, expected, rtol=1e-12)


def test_the_prior_variance_is_that_of_all_directions():
    method = METHODS["gaussian"]().fit(noisy(12))
    columns = with_ones(noisy(12))
    prior, _ = method.model_.parts
    of_directions = Prior.variance(prior, columns)
    np.testing.assert_allclose(prior.variance(columns), of_directions, rtol=1e-10)


def test_many_training_tasks_are_calibrated_on_some_of_them(monkeypatch):
    monkeypatch.setattr(foldin, "MANY_TASKS", 40)
    monkeypatch.setattr(foldin, "JUDGED_TASKS", 20)
    method, new = METHODS["gaussian"]().fit(noisy(60)), noisy(40, seed=1)
    assert method.model_.judge.tasks == 20
    index = np.random.default_rng(0).choice(300, 30, replace=False)
    low, high = method.predict_interval(index, new[:, index], 0.9)
    inside = np.delete((low <= new) & (new <= high), index, axis=1).mean()
    assert inside == pytest.approx(0.9, abs=0.03)


def test_a_task_of_another_kind_gets_wider_intervals_from_its_own_probes(monkeypatch):
    rng = np.random.default_rng(2)
    method = METHODS["gaussian"]().fit(noisy(30))
    new = noisy(20, seed=1)
    # A few cells are far off, which the training tasks never show.
    new += 8 * (rng.random(new.shape) < 0.2) * rng.normal(size=new.shape)
    index = rng.choice(300, 60, replace=False)
    coverage = {}
    for weight in (TRAINING_WEIGHT, 1e9):
        monkeypatch.setattr(intervals, "TRAINING_WEIGHT", weight)
        low, high = method.predict_interval(index, new[:, index], 0.9)
        coverage[weight] = np.delete((low <= new) & (new <= high), index, axis=1).mean()
    assert abs(coverage[TRAINING_WEIGHT] - 0.9) < abs(coverage[1e9] - 0.9) - 0.01
    assert coverage[TRAINING_WEIGHT] == pytest.approx(0.9, abs=0.05)


def test_columns_that_no_task_measured_do_not_change_the_intervals():
    train, new = noisy(4), noisy(1, seed=1)[0]
    index = np.arange(0, 300, 10)
    wide = np.hstack([train, np.full((4, 600), np.nan)])
    alone = Conformal(METHODS["column_mean"]).fit(train)
    beside = Conformal(METHODS["column_mean"]).fit(wide)
    ends = np.array(alone.predict_interval(index, new[index], 0.9))
    others = np.array(beside.predict_interval(index, new[index], 0.9))[:, :300]
    widths = (others[1] - others[0]) / (ends[1] - ends[0])
    assert np.median(widths) == pytest.approx(1, abs=0.1)
