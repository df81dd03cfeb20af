import numpy as np
import pytest

from lethe.completion import METHODS
from lethe.completion.intervals import Conformal, LeftOutRow, calibrate, shrunk_size


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
