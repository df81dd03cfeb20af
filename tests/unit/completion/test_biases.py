import numpy as np
import pytest

from lethe.completion.biases import fill, fit_biases


def in_blocks(shared, seed=0):
    """Two groups of tasks, measured on two halves of the examples that share a few columns."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(8, 1)) + rng.normal(size=60) + 0.1 * rng.normal(size=(8, 60))
    observed = np.zeros(z.shape, dtype=bool)
    observed[:4, : 30 + shared] = True
    observed[4:, 30:] = True
    return z, observed


def direct(z, observed, ridge_rows=0.0, ridge_columns=0.0):
    """The additive fit by dense least squares on one column per bias; the fitted matrix."""
    tasks, examples = z.shape
    mean = z[observed].mean()
    rows, columns = np.nonzero(observed)
    design = np.zeros((len(rows) + tasks + examples, tasks + examples))
    design[np.arange(len(rows)), rows] = 1
    design[np.arange(len(rows)), tasks + columns] = 1
    ridges = np.append(np.full(tasks, ridge_rows), np.full(examples, ridge_columns))
    design[len(rows) :] = np.diag(np.sqrt(ridges))
    target = np.append(z[observed] - mean, np.zeros(tasks + examples))
    biases = np.linalg.lstsq(design, target, rcond=None)[0]
    return mean + biases[:tasks, None] + biases[tasks:]


@pytest.mark.parametrize("shared", [1, 2, 30])
def test_the_fit_is_the_direct_solution_where_cells_are_missing_in_blocks(shared):
    z, observed = in_blocks(shared)
    fitted = fit_biases(z, observed).to_matrix()
    np.testing.assert_allclose(fitted, direct(z, observed), atol=1e-8)


@pytest.mark.parametrize("ridges", [(0.5, 2.0), (0.0, 1.0), (3.0, 0.0)])
def test_ridges_are_part_of_the_direct_solution(ridges):
    z, observed = in_blocks(1)
    fitted = fit_biases(z, observed, ridge_rows=ridges[0], ridge_columns=ridges[1]).to_matrix()
    np.testing.assert_allclose(fitted, direct(z, observed, *ridges), atol=1e-8)


def test_blocks_that_share_nothing_are_fitted_each():
    z, observed = in_blocks(0)
    fitted = fit_biases(z, observed).to_matrix()
    np.testing.assert_allclose(fitted[observed], direct(z, observed)[observed], atol=1e-8)
    assert np.isfinite(fill(z, observed)).all()


def test_a_complete_matrix_has_its_means_as_biases():
    z, _ = in_blocks(1)
    biases = fit_biases(z, np.ones(z.shape, dtype=bool))
    np.testing.assert_allclose(biases.mean + biases.columns, z.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(biases.rows, z.mean(axis=1) - z.mean(), atol=1e-12)
