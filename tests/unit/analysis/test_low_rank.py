import numpy as np
import pytest

from lethe.analysis import low_rank
from lethe.matrix import moments


def low_rank_matrix(rank=3, tasks=12, examples=500, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(tasks, rank)) @ rng.normal(size=(rank, examples))
    return factors + noise * rng.normal(size=(tasks, examples)) + 0.7


def plain_curve(z):
    """R2 by rank from numpy's SVD and the definition, nothing saved."""
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    total = np.square(z - z.mean()).mean()
    fits = [(u[:, :r] * s[:r]) @ vt[:r] for r in range(1, len(s) + 1)]
    return s, np.array([1 - np.square(z - fit).mean() / total for fit in fits])


@pytest.mark.parametrize("shape", [(12, 500), (12, 12), (30, 7), (2, 3)])
def test_the_curve_is_that_of_numpys_svd(shape):
    z = low_rank_matrix(tasks=shape[0], examples=shape[1])
    s, r2 = plain_curve(z)
    found = low_rank.rank_curve(z)
    np.testing.assert_allclose(found.singular_values, s, atol=1e-7 * s[0])
    np.testing.assert_allclose(found.r2, r2, atol=1e-12)


def test_comparators_are_the_fits_they_are_named_after():
    z = low_rank_matrix()
    columns, rows = z.mean(axis=0), z.mean(axis=1, keepdims=True)
    fits = {"column_mean": columns, "row_mean": rows, "additive": columns + rows - z.mean()}
    total = np.square(z - z.mean()).sum()
    wanted = {name: 1 - np.square(z - fit).sum() / total for name, fit in fits.items()}
    assert low_rank.rank_curve(z).comparators == pytest.approx(wanted, abs=1e-12)


def test_rank_three_without_noise_is_explained_by_three_components():
    z = low_rank_matrix(rank=2, noise=0)  # and the constant 0.7 as the third
    found = low_rank.rank_curve(z, max_rank=4)
    assert len(found.r2) == 4 and found.r2[1] < 0.999
    np.testing.assert_allclose(found.r2[2:], 1, atol=1e-12)


def test_columns_with_a_nan_are_dropped_and_counted():
    z = low_rank_matrix()
    holed = z.copy()
    holed[3, 5], holed[4, 9] = np.nan, np.inf
    found = low_rank.rank_curve(holed)
    assert found.dropped_columns == 2
    np.testing.assert_allclose(found.r2, low_rank.rank_curve(np.delete(z, [5, 9], axis=1)).r2)


def test_a_mean_far_above_the_spread_costs_no_digits():
    z = low_rank_matrix(tasks=6, examples=3000)
    s, r2 = plain_curve(z + 1e4)
    np.testing.assert_allclose(low_rank.rank_curve(z + 1e4).r2, r2, atol=1e-6)
    gathered = moments.compute_moments(moments.column_slices(z + 1e4, chunk=70))
    centred = z - z.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(gathered.scatter, centred @ centred.T, rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 499, 500, 10_000])
def test_moments_do_not_depend_on_the_chunks(chunk):
    z = low_rank_matrix()
    z[2, [0, 1, 300]] = np.nan
    whole, cut = (
        moments.compute_moments(moments.column_slices(z, size)) for size in (10_000, chunk)
    )
    assert (cut.count, cut.dropped) == (whole.count, whole.dropped) == (497, 3)
    np.testing.assert_allclose(cut.means, whole.means)
    np.testing.assert_allclose(cut.scatter, whole.scatter, atol=1e-9)


@pytest.mark.parametrize(
    "values", [np.full((4, 9), 0.1), np.zeros((4, 9)), np.full((4, 9), np.nan)]
)
def test_a_matrix_without_variation_is_refused(values):
    with pytest.raises(ValueError, match="no variation"):
        low_rank.rank_curve(values)


def test_an_empty_matrix_is_refused():
    with pytest.raises(ValueError, match="no variation"):
        low_rank.rank_curve(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="no examples"):
        moments.compute_moments([])


def test_components_multiply_back_to_z_and_have_a_fixed_sign():
    z = low_rank_matrix(rank=2, noise=0)
    z[0, 4] = np.nan
    tasks, examples = low_rank.components(z, 3)
    assert (tasks.sum(axis=0) >= 0).all()
    known = np.isfinite(z).all(axis=0)
    np.testing.assert_allclose((tasks @ examples.T)[:, known], z[:, known], atol=1e-8)
    assert np.isnan(examples[4]).all()


def test_records_hold_a_line_for_each_comparator_and_rank():
    records = low_rank.rank_curve(low_rank_matrix()).records()
    assert [line["predictor"] for line in records[:4]] == [
        *("column_mean", "row_mean", "additive", "svd")
    ]
    assert [line["rank"] for line in records[3:]] == list(range(1, 13))
