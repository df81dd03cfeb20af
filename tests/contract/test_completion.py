"""One suite that every completion method passes: what a user may rely on whatever the method."""

import numpy as np
import pytest

from lethe.completion import BINARY, METHODS
from lethe.completion.intervals import Conformal

TASKS, EXAMPLES = 8, 60
# What each can recover exactly, up to the ridge: these see no more than example means.
IGNORE_PROBES = ("random", "column_mean")
ONLY_MEANS = (*IGNORE_PROBES, "constant", "additive", "knn")
EVERY = pytest.mark.parametrize("name", METHODS)


def uniform(rng, *shape):
    return rng.uniform(-1, 1, shape)


def rank_one_plus_additive(tasks=TASKS, seed=0):
    """Z_ij = a_i + b_j + u_i v_j, nothing else."""
    rng = np.random.default_rng(seed)
    a, b = uniform(rng, tasks, 1), uniform(rng, 1, EXAMPLES)
    return a + b + uniform(rng, tasks, 1) * 3 * uniform(rng, 1, EXAMPLES)


def additive(tasks=TASKS, seed=0):
    rng = np.random.default_rng(seed)
    return uniform(rng, tasks, 1) + 3 * uniform(rng, 1, EXAMPLES)


def matrix_for(name, tasks=TASKS, seed=0):
    z = rank_one_plus_additive(tasks, seed)
    return (z > 0.5).astype(float) if name in BINARY else z


def split(z):
    return z[:-1], z[-1]


def fitted(name, train):
    return METHODS[name]().fit(train)


def some(k, seed=0):
    return np.random.default_rng(seed).choice(EXAMPLES, k, replace=False)


def rmse(a, b):
    return np.sqrt(np.square(a - b).mean())


@EVERY
def test_a_prediction_is_a_finite_row_and_fit_returns_itself(name):
    train, new = split(matrix_for(name))
    method = METHODS[name]()
    assert method.fit(train) is method
    predicted = method.predict(some(10), new[some(10)])
    assert predicted.shape == (EXAMPLES,) and np.isfinite(predicted).all()


@pytest.mark.parametrize("name", [n for n in METHODS if n not in (*IGNORE_PROBES, *BINARY)])
def test_a_method_that_looks_at_probes_recovers_what_it_can(name):
    whole = rank_one_plus_additive(30)
    if name == "constant":
        whole = np.tile(whole[:, :1], (1, EXAMPLES))
    elif name in (*ONLY_MEANS, "affine"):
        whole = additive(30)
    train, new = split(whole)
    predicted = fitted(name, train).predict(some(30), new[some(30)])
    # Soft-impute shrinks what it cannot see; the others are exact up to their ridge.
    allowed = 0.5 if name == "soft_impute" else 0.02
    assert rmse(predicted, new) < allowed * max(new.std(), 1)


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_method_gives_probabilities_that_order_examples(name):
    train, new = split(matrix_for(name, 30))
    predicted = fitted(name, train).predict(some(40), new[some(40)])
    assert predicted.min() >= 0 and predicted.max() <= 1
    assert predicted[new == 1].mean() > predicted[new == 0].mean() + 0.3


@pytest.mark.parametrize("name", BINARY)
def test_a_binary_method_refuses_nats(name):
    with pytest.raises(ValueError, match=r"0\.\.1.*seen"):
        fitted(name, 3 * rank_one_plus_additive())


@EVERY
def test_the_order_of_probes_makes_no_difference(name):
    train, new = split(matrix_for(name))
    method, index = fitted(name, train), some(12)
    expected = method.predict(index, new[index])
    np.testing.assert_array_equal(method.predict(index[::-1], new[index[::-1]]), expected)


@EVERY
@pytest.mark.parametrize("k", [0, 1, EXAMPLES])
def test_no_probe_one_probe_and_every_probe_work(name, k):
    train, new = split(matrix_for(name))
    predicted = fitted(name, train).predict(some(k), new[some(k)])
    assert np.isfinite(predicted).all()


@EVERY
def test_constant_columns_are_predicted_and_harm_no_other(name):
    z = matrix_for(name)
    z[:, :5] = 1.0
    train, new = split(z)
    predicted = fitted(name, train).predict(some(20), new[some(20)])
    assert np.isfinite(predicted).all()
    if name not in ("random", "constant"):
        assert np.abs(predicted[:5] - 1).max() < 0.7


@EVERY
def test_a_constant_matrix_is_predicted(name):
    train = np.ones((TASKS, EXAMPLES))
    predicted = fitted(name, train).predict(some(5), np.ones(5))
    np.testing.assert_allclose(predicted, 1, atol=0.1)


@EVERY
def test_duplicated_tasks_break_nothing(name):
    train, new = split(matrix_for(name))
    once = fitted(name, train).predict(some(20), new[some(20)])
    twice = fitted(name, np.vstack([train, train])).predict(some(20), new[some(20)])
    assert np.isfinite(twice).all()
    if name != "random":
        assert rmse(twice, new) < rmse(once, new) + 0.1


@EVERY
@pytest.mark.parametrize("tasks", [1, 2])
def test_one_or_two_training_tasks_are_enough(name, tasks):
    train, new = matrix_for(name)[:tasks], matrix_for(name)[-1]
    predicted = fitted(name, train).predict(some(10), new[some(10)])
    assert predicted.shape == (EXAMPLES,) and np.isfinite(predicted).all()


@EVERY
def test_float32_and_float64_agree(name):
    train, new = split(matrix_for(name))
    index = some(15)
    single = fitted(name, train.astype(np.float32)).predict(index, new[index].astype(np.float32))
    double = fitted(name, train).predict(index, new[index])
    np.testing.assert_allclose(single, double, atol=2e-4)


@EVERY
def test_unknown_cells_are_masked_and_unknown_probes_ignored(name):
    z = matrix_for(name, 30)
    train, new = split(z)
    holes = np.random.default_rng(1).random(train.shape) < 0.05
    train = np.where(holes, np.nan, train)
    index, values = some(20), new[some(20)].copy()
    method = fitted(name, train)
    unknown = np.append(values[:-1], np.nan)
    np.testing.assert_allclose(
        method.predict(index, unknown), method.predict(index[:-1], values[:-1])
    )
    whole = fitted(name, z[:-1]).predict(index, values)
    if name != "random":
        assert rmse(method.predict(index, values), whole) < 0.25


@EVERY
def test_a_column_that_no_training_task_knows_gets_a_finite_prediction(name):
    train, new = split(matrix_for(name))
    train = train.copy()
    train[:, 3] = np.nan
    assert np.isfinite(fitted(name, train).predict(some(10), new[some(10)])).all()


# These draw numbers for every column.
@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("random", "logistic_mf")]
)
def test_columns_that_no_training_task_knows_change_nothing_elsewhere(name):
    """Not to the bit where a fit is iterated until little moves."""
    train, new = split(matrix_for(name, 10))
    more = np.hstack([train, np.full((len(train), 200), np.nan)])
    index, values = some(10), new[some(10)]
    plain, padded = fitted(name, train), fitted(name, more)
    atol = 1e-9
    predicted = padded.predict(index, values)[:EXAMPLES]
    np.testing.assert_allclose(predicted, plain.predict(index, values), atol=atol)
    if plain.has_intervals:
        for end, wanted in zip(
            padded.predict_interval(index, values),
            plain.predict_interval(index, values),
            strict=True,
        ):
            np.testing.assert_allclose(end[:EXAMPLES], wanted, atol=atol)


@EVERY
def test_several_rows_at_once_equal_one_by_one(name):
    z = matrix_for(name, 12)
    method, index = fitted(name, z[:8]), some(10)
    values = z[8:, index].copy()
    values[1, 2] = np.nan
    together = method.predict(index, values)
    for row, predicted in zip(values, together, strict=True):
        np.testing.assert_allclose(method.predict(index, row), predicted, atol=1e-9)


@EVERY
def test_the_same_settings_give_the_same_bytes(name):
    train, new = split(matrix_for(name))
    first, second = (fitted(name, train).predict(some(9), new[some(9)]) for _ in range(2))
    assert first.tobytes() == second.tobytes()


@EVERY
@pytest.mark.parametrize(
    ("index", "values", "message"),
    [
        ([0, 0], [0.0, 0.0], "twice"),
        ([EXAMPLES], [0.0], "out of range"),
        ([-1], [0.0], "out of range"),
        ([0, 1], [0.0], "2 probe indices"),
    ],
)
def test_bad_probes_are_refused(name, index, values, message):
    with pytest.raises(ValueError, match=message):
        fitted(name, matrix_for(name)).predict(index, values)


@EVERY
@pytest.mark.parametrize("probes", [[0, 1], []])
def test_a_prediction_before_the_fit_is_refused(name, probes):
    method = METHODS[name]()
    values = np.zeros(len(probes))
    with pytest.raises(ValueError, match=r"is not fitted; call fit\(train\) first"):
        method.predict(np.array(probes, dtype=int), values)
    if method.has_intervals:
        with pytest.raises(ValueError, match=r"is not fitted; call fit\(train\) first"):
            method.predict_interval(np.array(probes, dtype=int), values)


@EVERY
@pytest.mark.parametrize("train", [np.ones(3), np.empty((0, 3)), np.full((2, 3), np.nan)])
def test_a_matrix_without_known_cells_is_refused(name, train):
    with pytest.raises(ValueError, match="train has"):
        fitted(name, train)


@EVERY
def test_intervals_are_nested_around_the_prediction_or_refused(name):
    train, new = split(matrix_for(name))
    method, index = fitted(name, train), some(10)
    if not method.has_intervals:
        with pytest.raises(ValueError, match="Conformal"):
            method.predict_interval(index, new[index])
        method = Conformal(METHODS[name]).fit(train)
    low, high = method.predict_interval(index, new[index], 0.5)
    lower, higher = method.predict_interval(index, new[index], 0.9)
    middle = method.predict(index, new[index])
    assert low.shape == high.shape == (EXAMPLES,)
    for smaller, larger in [(lower, low), (low, middle), (middle, high), (high, higher)]:
        assert (smaller <= larger + 1e-12).all()
