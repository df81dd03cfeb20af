"""A task's own row never enters its prediction, but for the probed cells."""

from dataclasses import replace

import numpy as np
import pytest

from lethe.completion.evaluation import predict_rows
from lethe.config.replay_settings import PREDICTION_METHODS
from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix
from lethe.replay.predictions import predict_without_own_row

NAMES = [f"t{i}" for i in range(7)]
SPLITS = ("train", "train", "test", "train", "ood", "train", "train")
TASKS = {n: Task(name=n, group=n[1], split=s) for n, s in zip(NAMES, SPLITS, strict=True)}
ALLOWED = np.arange(40) % 4 != 3
SETTINGS = {"probes": 6, "seed": 0, "allowed": ALLOWED}


def matrix(seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(7, 2)) @ rng.normal(size=(2, 40)) + 0.1 * rng.normal(size=(7, 40))
    return Matrix(values.astype(np.float32), list(NAMES), [f"e{i}" for i in range(40)])


@pytest.mark.parametrize("method", PREDICTION_METHODS)
def test_a_tasks_own_row_never_enters_its_prediction(method):
    """All cells of the row change but the probed ones; the prediction stays to the last bit."""
    first = predict_without_own_row(matrix(), TASKS, method, **SETTINGS)
    for row, name in enumerate(NAMES):
        probed = np.flatnonzero(first.values[row] == matrix().values[row])
        assert len(probed) == 6
        assert ALLOWED[probed].all(), "held-out examples are never probed"
        changed = matrix()
        others = np.setdiff1d(np.arange(40), probed)
        changed.values[row, others] = 1e3 * np.random.default_rng(1).normal(size=34)
        second = predict_without_own_row(changed, TASKS, method, **SETTINGS)
        assert second.tasks[row] == name
        np.testing.assert_array_equal(second.values[row], first.values[row])
        assert (second.values != first.values).any(), "the other tasks do read this row"


def test_a_sibling_that_forgets_alike_makes_the_prediction_better_and_keeps_the_own_row_out():
    z = matrix()
    noise = np.random.default_rng(2).normal(size=z.values.shape)
    sibling = (z.values + 0.05 * noise).astype(np.float32)
    unprobed = np.arange(40) % 4 == 3

    def error(method, **changes):
        predicted = predict_without_own_row(z, TASKS, method, **SETTINGS, **changes)
        return np.square((predicted.values - z.values)[:, unprobed]).mean()

    plain = error("gaussian")
    assert error("gaussian_sibling", sibling=sibling) < 0.8 * plain
    assert error("gaussian_sibling") == plain, "the sibling itself has no sibling"
    first = predict_without_own_row(z, TASKS, "gaussian_sibling", **SETTINGS, sibling=sibling)
    changed = matrix()
    changed.values[2, unprobed] = 99.0
    second = predict_without_own_row(
        changed, TASKS, "gaussian_sibling", **SETTINGS, sibling=sibling
    )
    np.testing.assert_array_equal(second.values[2], first.values[2])


def test_the_prediction_of_one_task_is_that_from_all_other_rows():
    predicted = predict_without_own_row(matrix(), TASKS, "gaussian", **SETTINGS)
    table = {n: replace(t, split="test" if n == "t2" else "train") for n, t in TASKS.items()}
    expected = predict_rows(matrix(), table, method="gaussian", **SETTINGS)
    np.testing.assert_array_equal(predicted.values[2], expected.values[0])
    assert predicted.tasks == NAMES


def test_an_example_that_no_other_task_measured_is_never_predicted():
    unknown = matrix()
    unknown.values[:, 5] = np.nan
    predicted = predict_without_own_row(unknown, TASKS, "additive", **SETTINGS)
    assert np.isnan(predicted.values[:, 5]).all()
    assert np.isfinite(np.delete(predicted.values, 5, axis=1)).all()
