import numpy as np
import pytest
from helpers.streamed import write

from lethe.analysis import low_rank, streamed_rank
from lethe.analysis.complete_block import complete_tasks
from lethe.errors import LetheError


def spread_gaps(tasks=8, examples=60):
    """A third of the cells is unknown, in such a way that no column is complete."""
    z = np.random.default_rng(0).normal(0.1, 0.2, (tasks, examples)).astype(np.float32)
    z[(np.arange(tasks)[:, None] + np.arange(examples)) % 3 == 0] = np.nan
    return z


def test_a_task_without_values_is_left_out_and_no_other():
    z = np.random.default_rng(1).normal(size=(5, 40))
    z[2] = np.nan
    assert complete_tasks([z]).tolist() == [0, 1, 3, 4]


def test_the_tasks_do_not_depend_on_the_chunks():
    z = spread_gaps()
    first = complete_tasks([z])
    assert len(first) >= 3
    assert np.isfinite(z[first]).all(axis=0).sum() >= 20
    np.testing.assert_array_equal(complete_tasks(np.array_split(z, 7, axis=1)), first)


def test_tasks_that_share_no_examples_have_no_block():
    z = np.full((2, 10), np.nan)
    z[0, :5], z[1, 5:] = 1.0, 2.0
    assert not len(complete_tasks([z]))


def test_the_rank_curve_of_a_sparse_z_is_that_of_the_tasks_it_names(tmp_path):
    z = spread_gaps()
    curve = streamed_rank.streamed_rank_curve(write(tmp_path, z))
    used = [row for row in range(8) if f"t{row}" not in curve.dropped_tasks]
    assert 2 <= len(used) < 8
    expected = low_rank.rank_curve(z[used])
    np.testing.assert_allclose(curve.r2, expected.r2, atol=1e-12)
    assert curve.dropped_columns == expected.dropped_columns


def test_a_complete_z_leaves_out_no_task(tmp_path):
    z = np.random.default_rng(2).normal(size=(4, 30)).astype(np.float32)
    assert not streamed_rank.streamed_rank_curve(write(tmp_path, z)).dropped_tasks


def test_a_binary_z_without_complete_columns_has_no_f1(tmp_path):
    z = (spread_gaps() > 0.1).astype(np.float32)
    z[np.isnan(spread_gaps())] = np.nan
    assert streamed_rank.streamed_f1_by_rank(write(tmp_path, z)) == {}


def test_tasks_without_shared_examples_are_refused_with_the_remedy(tmp_path):
    z = np.full((2, 10), np.nan, dtype=np.float32)
    z[0, :5], z[1, 5:] = 1.0, 2.0
    with pytest.raises(LetheError, match=r"Z\.parquet: no two of its 2 tasks .*measure the same"):
        streamed_rank.streamed_rank_curve(write(tmp_path, z))
