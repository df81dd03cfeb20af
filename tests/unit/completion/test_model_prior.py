"""Completion with another model's rows as a prior, without its row of the new task."""

import numpy as np
import pytest

from lethe.completion.column_noise import estimate_column_noise
from lethe.completion.foldin import gram
from lethe.completion.gaussian import Gaussian
from lethe.completion.model_prior import (
    GaussianWithPrior,
    combine_mapped_rows,
    numbers_of_same_tasks,
    read_prior,
    weighted_parts,
    without_tasks,
)
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix, write_matrix

EXAMPLES = 300
NEW_TASKS = 6
PRIOR_TASKS = 24
PROBES = np.arange(3, EXAMPLES, 31)


def small_and_large(tasks, seed=0):
    """Rows of a large model (tasks + NEW_TASKS, EXAMPLES) and of a small one (PRIOR_TASKS, ...).

    Both have the same four factors. The first `tasks` rows of both belong to the same tasks. The
    new tasks are unknown to the small model.
    """
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(4, EXAMPLES))
    loads = rng.normal(size=(PRIOR_TASKS + NEW_TASKS, 4))
    common = loads @ factors
    noise = 0.2 * rng.normal(size=(2, *common.shape))
    large = common + noise[0] + rng.normal(size=EXAMPLES)
    small = 0.6 * common + noise[1] + 0.4
    learned = np.append(np.arange(tasks), np.arange(PRIOR_TASKS, PRIOR_TASKS + NEW_TASKS))
    return large[learned], small[:PRIOR_TASKS]


def same_tasks(tasks):
    return [number if number < tasks else None for number in range(PRIOR_TASKS)]


def rmse(truth, predicted):
    return float(np.sqrt(np.square(predicted - truth).mean()))


def errors(tasks, prior=None, seed=0):
    """RMSE of new tasks without and with a prior, by default the small model of the family."""
    large, small = small_and_large(tasks, seed)
    new = large[tasks:]
    own = Gaussian().fit(large[:tasks])
    method = GaussianWithPrior().fit(
        large[:tasks], small if prior is None else prior, same_tasks(tasks)
    )
    return (
        rmse(new, own.predict(PROBES, new[:, PROBES])),
        rmse(new, method.predict(PROBES, new[:, PROBES])),
    )


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_the_prior_of_the_family_helps_where_few_rows_exist(tasks):
    without, with_prior = np.mean([errors(tasks, seed=seed) for seed in range(3)], axis=0)
    assert with_prior < 0.8 * without


@pytest.mark.parametrize("tasks", [3, 5, 12])
def test_a_bad_prior_does_little_harm(tasks):
    pairs = []
    for seed in range(4):
        small = small_and_large(tasks, seed)[1]
        shuffled = np.random.default_rng(9).permuted(small, axis=1)
        pairs.append(errors(tasks, prior=shuffled, seed=seed))
    without, with_prior = np.mean(pairs, axis=0)
    assert with_prior < 1.03 * without


def test_a_prior_that_does_not_help_gets_weight_0_and_changes_nothing(monkeypatch):
    large, small = small_and_large(12)
    method = GaussianWithPrior().fit(large[:12], small, same_tasks(12))
    assert method.weight(len(PROBES)) > 0
    judge = method._left_out_errors

    def penalise_prior(row, weight, probes, factors):
        return judge(row, 0.0, probes, factors) + weight

    method = GaussianWithPrior().fit(large[:12], small, same_tasks(12))
    monkeypatch.setattr(method, "_left_out_errors", penalise_prior)
    assert method.weight(len(PROBES)) == 0
    predicted = method.predict(PROBES, large[-1, PROBES])
    expected = Gaussian().fit(large[:12]).predict(PROBES, large[-1, PROBES])
    np.testing.assert_array_equal(predicted, expected)


def test_with_one_row_the_prior_counts_fully():
    large, small = small_and_large(1)
    method = GaussianWithPrior().fit(large[:1], small, same_tasks(1))
    assert method.weight(len(PROBES)) == 1
    assert np.isfinite(method.predict(PROBES, large[-1, PROBES])).all()
    assert np.isfinite(method.predict(np.zeros(0, dtype=int), np.zeros(0))).all()


def test_a_left_out_task_is_judged_without_the_other_models_row_of_it():
    """A prior that copies the model's rows, and knows nothing of others, must not seem useful."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(10, EXAMPLES))
    method = GaussianWithPrior().fit(rows, rows, list(range(10)))
    other_values = rows.copy()
    other_values[3] = 1e3
    changed = GaussianWithPrior().fit(rows, other_values, list(range(10)))
    for probes in (0, 10):
        factors = (1.0,)
        alone = method._left_out_errors(3, weight=1.0, probes=probes, factors=factors)
        without = changed._left_out_errors(3, weight=1.0, probes=probes, factors=factors)
        np.testing.assert_allclose(alone, without, rtol=1e-6)


def test_equal_weights_are_the_gaussian_method():
    rows = small_and_large(8)[0]
    total = gram(rows)
    prior, noise = weighted_parts(total, np.ones(len(rows)))
    expected_prior, _ = Gaussian().parts(total)
    columns = np.vstack([rows, np.ones(EXAMPLES)])
    np.testing.assert_allclose(prior.mean @ columns, expected_prior.mean @ columns)
    np.testing.assert_allclose(prior.variance(columns), expected_prior.variance(columns))
    np.testing.assert_allclose(
        noise.variance(rows), estimate_column_noise(total).variance(rows), rtol=1e-8
    )


def test_a_row_of_weight_2_is_two_equal_rows():
    rows = small_and_large(5)[0]
    doubled = np.vstack([rows, rows[:1]])
    weights = np.ones(len(rows))
    weights[0] = 2
    once, _ = weighted_parts(gram(rows), weights)
    twice, _ = weighted_parts(gram(doubled), np.ones(len(doubled)))
    columns = np.vstack([rows, np.ones(EXAMPLES)])
    doubled_columns = np.vstack([doubled, np.ones(EXAMPLES)])
    np.testing.assert_allclose(once.mean @ columns, twice.mean @ doubled_columns)
    np.testing.assert_allclose(once.variance(columns), twice.variance(doubled_columns))


def test_mapped_rows_have_the_models_level_scale_and_offsets():
    rng = np.random.default_rng(2)
    other = rng.normal(size=(4, EXAMPLES))
    offsets = rng.normal(size=EXAMPLES)
    own = 2 * other[:3] + offsets + 5
    total = gram(np.vstack([own, other]))
    combinations = combine_mapped_rows(total, [(0, 3), (1, 4), (2, 5)], slice(3, 7))
    mapped = combinations @ np.vstack([own, other, np.ones((1, EXAMPLES))])
    centred = offsets - offsets.mean()
    np.testing.assert_allclose(mapped, 2 * other + offsets.mean() + 5 + 0.75 * centred)


def test_unknown_cells_are_filled_in():
    large, small = small_and_large(6)
    incomplete = large[:6].copy()
    incomplete[2, :40] = np.nan
    small[1, 50:60] = np.nan
    method = GaussianWithPrior().fit(incomplete, small, same_tasks(6))
    predicted = method.predict(PROBES, large[-1, PROBES])
    assert rmse(large[-1], predicted) < rmse(large[-1], incomplete[:2].mean(axis=0))


@pytest.mark.parametrize(
    ("prior", "same_task", "message"),
    [
        (np.ones((2, 3)), [0, 1], "prior has shape"),
        (np.ones((2, EXAMPLES)), [0], "1 values for 2 rows"),
        (np.ones((2, EXAMPLES)), [None, None], "at least one number"),
        (np.ones((2, EXAMPLES)), [0, 9], "at least one number"),
        (np.full((2, EXAMPLES), np.inf), [0, 1], "infinite"),
        (np.full((2, EXAMPLES), np.nan), [0, 1], "no known cell"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(prior, same_task, message):
    with pytest.raises(ValueError, match=message):
        GaussianWithPrior().fit(np.eye(4, EXAMPLES), prior, same_task)


def test_a_prior_is_read_in_the_order_of_z(tmp_path):
    ids = [f"e{number}" for number in range(5)]
    z = Matrix(np.zeros((2, 5), dtype=np.float32), ["a", "b"], ids)
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    path = tmp_path / "Z.parquet"
    write_matrix(path, Matrix(values, ["c", "a", "d"], ids[::-1]))
    prior = read_prior(path, z)
    assert prior.tasks == ["c", "a", "d"] and prior.example_ids == ids
    np.testing.assert_array_equal(prior.values, values[:, ::-1])
    assert numbers_of_same_tasks(prior.tasks, z.tasks) == [None, 0, None]
    assert without_tasks(prior, ["a"]).tasks == ["c", "d"]
    write_matrix(path, Matrix(values, ["c", "e", "d"], ids))
    with pytest.raises(LetheError, match="has none of the 2 tasks, such as 'a'"):
        read_prior(path, z)
    write_matrix(path, Matrix(values[:, 1:], ["c", "a", "d"], ids[1:]))
    with pytest.raises(LetheError, match="lacks 1 of the 5 upstream examples, such as 'e0'"):
        read_prior(path, z)
