"""Everything about the training rows is M x M or local to a column, so that Z can be streamed."""

import numpy as np
import pytest

from lethe.completion import METHODS
from lethe.completion.column_noise import estimate_column_noise
from lethe.completion.foldin import FoldIn, FoldInModel, gram, with_ones
from lethe.completion.matrix_factorisation import MatrixFactorisation

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(9, 3)) @ RNG.normal(size=(3, 80)) + 0.1 * RNG.normal(size=(9, 80)) + 0.5
# Factors of the local method are judged by its first step, which is that of `gaussian`.
JUDGED_AS_USED = [
    name
    for name, method in METHODS.items()
    if issubclass(method, FoldIn) and name != "gaussian_local"
]
LINEAR = [name for name, method in METHODS.items() if issubclass(method, FoldIn)]


def test_gram_matrices_of_chunks_add_up_to_that_of_the_whole():
    parts = [gram(chunk) for chunk in np.array_split(Z, 7, axis=1)]
    np.testing.assert_allclose(sum(parts), gram(Z), rtol=1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_streamed_columns_are_predicted_as_the_whole_matrix_is(name):
    train, new, index = Z[:-1], Z[-1], np.arange(0, 80, 6)
    chunks = np.array_split(train, 5, axis=1)
    model = FoldInModel(METHODS[name](), sum(gram(chunk) for chunk in chunks), train)
    weights = model.weights(train[:, index], new[index][None])
    streamed = np.hstack([weights @ with_ones(chunk) for chunk in chunks])[0]
    whole = METHODS[name]().fit(train).predict(index, new[index])
    np.testing.assert_allclose(streamed, whole, atol=1e-8)


def test_noise_of_a_column_needs_that_column_only():
    noise = estimate_column_noise(gram(Z))
    one_by_one = [noise.variance(Z[:, [j]])[0] for j in range(Z.shape[1])]
    np.testing.assert_allclose(noise.variance(Z), one_by_one, rtol=1e-10)


def test_pooled_noise_from_the_gram_matrix_is_the_mean_square_of_left_out_residuals():
    noise = estimate_column_noise(gram(Z))
    assert noise.pooled == pytest.approx(np.square(noise.residual @ Z).mean())


def test_left_out_residuals_are_those_of_ridge_regression_without_the_row():
    centred = Z - Z.mean(axis=0)
    size = 0.1 * np.trace(centred @ centred.T) / len(Z)
    others, row = centred[1:], centred[0]
    fit = np.linalg.solve(others @ others.T + size * np.eye(len(others)), others @ row) @ others
    np.testing.assert_allclose(
        (estimate_column_noise(gram(Z)).residual @ Z)[0], row - fit, atol=1e-8
    )


@pytest.mark.parametrize("name", JUDGED_AS_USED)
def test_a_left_out_error_from_the_gram_matrix_is_that_of_predicting_the_row(name):
    model = METHODS[name]().fit(Z).model_
    candidate = model.choose(10)
    index = model.draw_probes(10, 1)[0]
    method = METHODS[name]()
    method.candidates = lambda: [candidate]
    predicted = method.fit(np.delete(Z, 4, axis=0)).predict(index, Z[4, index])
    hidden = np.setdiff1d(np.arange(80), index)
    expected = np.square(predicted - Z[4])[hidden].sum()
    assert model._squared_errors(4, index, [candidate])[0] == pytest.approx(expected, rel=1e-6)


def test_of_two_training_tasks_a_given_ridge_or_rank_is_used():
    index = np.arange(0, 80, 6)

    def predict(**settings):
        return MatrixFactorisation(**settings).fit(Z[:2]).predict(index, Z[-1, index])

    strong = predict(ridge=1e6)
    np.testing.assert_array_equal(strong, predict(rank=1, ridge=1e6))
    assert not np.allclose(strong, predict(ridge=1e-6))
    np.testing.assert_array_equal(predict(), predict(rank=1))


@pytest.mark.parametrize("k", [3, 40])
def test_a_solver_gives_the_textbook_posterior_whatever_the_number_of_probes(k):
    method = METHODS["gaussian"](noise=0.7)
    parts = method.parts(gram(Z[:-1]))
    prior, noise = parts
    columns, index, y = with_ones(Z[:-1]), np.arange(k), Z[-1, :k]
    features, variance = prior.basis @ columns, 0.7 * noise.variance(Z[:-1])
    covariance = features.T @ features
    probed = covariance[:k, :k] + np.diag(variance[:k])
    means = prior.mean @ columns
    gain = covariance[:, :k] @ np.linalg.inv(probed)
    solver = method.solver(parts, columns[:, index])
    predicted = solver.weights(y[None], [0.7])[0, 0] @ columns
    np.testing.assert_allclose(predicted, means + gain @ (y - means[:k]), atol=1e-8)
    left = np.diag(covariance) - np.einsum("ij,ij->i", gain, covariance[:, :k])
    np.testing.assert_allclose(solver.variance(columns, 0.7), left, atol=1e-8)
    inverse = np.linalg.inv(probed)
    expected = (inverse @ (y - means[:k])) / np.sqrt(np.diag(inverse))
    np.testing.assert_allclose(solver.left_out_residuals(y[None], 0.7)[0], expected, atol=1e-6)


def test_a_noisy_column_moves_the_prediction_less_than_a_clean_one():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(20, 1)) @ np.ones((1, 60))
    z[:, :30] += rng.normal(size=(20, 30))
    method = METHODS["gaussian"](noise=1.0).fit(z)
    noisy, clean = (method.predict([0, 30], values) for values in ([2.0, 0.0], [0.0, 2.0]))
    assert clean[31:].mean() > 2 * noisy[31:].mean()


def test_the_variance_of_the_prior_is_that_of_its_directions():
    prior, _ = METHODS["gaussian"]().fit(Z).model_.parts
    columns = with_ones(Z + 2.0)
    expected = np.square(prior.basis @ columns).sum(axis=0)
    np.testing.assert_allclose(prior.variance(columns), expected, rtol=1e-12)


def test_the_gram_matrix_is_that_of_the_rows_and_a_row_of_ones():
    stacked = with_ones(Z)
    np.testing.assert_allclose(gram(Z), stacked @ stacked.T, rtol=1e-12)


def test_a_fit_and_its_predictions_do_not_depend_on_later_changes_of_the_rows():
    rows = Z.copy()
    method = METHODS["gaussian"]().fit(rows)
    expected = METHODS["gaussian"]().fit(Z).predict([1, 5], [0.2, 0.1])
    rows[:] = 0.0
    np.testing.assert_array_equal(method.predict([1, 5], [0.2, 0.1]), expected)
