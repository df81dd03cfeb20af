import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.streamed import CHUNK, EXAMPLES, TASKS, holed, values, write

from lethe.analysis import low_rank, streamed_rank
from lethe.errors import LetheError
from lethe.matrix import forgetting_matrix, streams


@pytest.fixture
def z():
    return values()


def test_chunks_put_together_are_the_matrix(tmp_path, z):
    stream = streams.Stream(write(tmp_path, z), chunk=CHUNK)
    assert stream.tasks == [f"t{i}" for i in range(TASKS)] and stream.examples == EXAMPLES
    assert max(chunk.shape[1] for chunk in stream) <= CHUNK
    np.testing.assert_array_equal(np.concatenate(list(stream), axis=1), z)
    np.testing.assert_array_equal(forgetting_matrix.read_matrix(stream.path).values, z)


def test_a_stream_of_some_tasks_has_them_in_the_order_asked_for(tmp_path, z):
    stream = streams.Stream(write(tmp_path, z), ["t4", "t1"], CHUNK)
    np.testing.assert_array_equal(np.concatenate(list(stream), axis=1), z[[4, 1]])


def test_taken_columns_are_those_asked_for_in_any_order(tmp_path, z):
    index = np.array([699, 0, 200, 199, 650, 1])
    np.testing.assert_array_equal(streams.Stream(write(tmp_path, z)).take(index), z[:, index])
    with pytest.raises(LetheError, match=r"0\.\.699"):
        streams.Stream(tmp_path / "Z.parquet").take(np.array([700]))


@pytest.mark.parametrize("gaps", [False, True])
def test_the_streamed_rank_curve_is_the_one_in_memory(tmp_path, z, gaps):
    z = holed(z) if gaps else z
    streamed = streamed_rank.streamed_rank_curve(write(tmp_path, z))
    dense = low_rank.rank_curve(z)
    assert streamed.dropped_columns == dense.dropped_columns == (6 if gaps else 0)
    np.testing.assert_allclose(streamed.r2, dense.r2, atol=1e-12)
    np.testing.assert_allclose(streamed.singular_values, dense.singular_values, rtol=1e-7)
    assert streamed.comparators == pytest.approx(dense.comparators, abs=1e-12)


def test_a_file_that_is_no_z_is_named(tmp_path, z):
    (tmp_path / "cut.parquet").write_bytes(write(tmp_path, z).read_bytes()[:-100])
    pq.write_table(pa.table({"example_id": ["x"]}), tmp_path / "bare.parquet")
    texts = pa.table({"example_id": ["x", "y"], "t": ["low", "high"]})
    pq.write_table(texts, tmp_path / "texts.parquet")
    for name in ("cut", "bare", "texts", "none"):
        with pytest.raises(LetheError, match=f"{name}.parquet"):
            streamed_rank.streamed_rank_curve(tmp_path / f"{name}.parquet")
    with pytest.raises(LetheError, match="'t99'"):
        streams.Stream(tmp_path / "Z.parquet", ["t99"])


def test_a_z_without_variation_is_named(tmp_path):
    with pytest.raises(LetheError, match=r"Z.parquet.*no variation"):
        streamed_rank.streamed_rank_curve(write(tmp_path, np.full((3, 10), 0.1, dtype=np.float32)))


def binary(tasks, examples, rank, seed=0):
    """A Z of 0s and 1s that logistic factors of this rank made."""
    rng = np.random.default_rng(seed)
    logits = 4 * rng.normal(size=(tasks, rank)) @ rng.normal(size=(rank, examples)) - 1
    return (logits > 0).astype(np.float32)


def test_a_binary_z_is_described_better_by_more_logistic_factors(tmp_path):
    z = binary(12, 80, 2)
    gap = np.full((12, 3), np.nan, dtype=np.float32)
    values = np.hstack([z, gap])
    tasks, ids = [f"t{i}" for i in range(12)], [f"e{i}" for i in range(83)]
    forgetting_matrix.write_matrix(tmp_path / "z", forgetting_matrix.Matrix(values, tasks, ids))
    found = streamed_rank.streamed_f1_by_rank(tmp_path / "z")
    assert list(found) == list(range(1, 12))
    assert found[1] < found[2] - 0.02 and found[3] > 0.95
    plain = 2 * z.mean() / (1 + z.mean())  # all cells called forgotten
    assert found[1] > plain


def test_a_z_in_nats_or_of_too_many_cells_has_no_f1(tmp_path, monkeypatch):
    z = forgetting_matrix.Matrix(binary(4, 10, 1), list("abcd"), [str(i) for i in range(10)])
    forgetting_matrix.write_matrix(tmp_path / "z", z)
    assert len(streamed_rank.streamed_f1_by_rank(tmp_path / "z")) == 4
    monkeypatch.setattr(streamed_rank, "LARGEST_BINARY", 39)
    assert streamed_rank.streamed_f1_by_rank(tmp_path / "z") == {}
    monkeypatch.undo()
    z.values[2, 3] = 0.5
    forgetting_matrix.write_matrix(tmp_path / "z", z)
    assert streamed_rank.streamed_f1_by_rank(tmp_path / "z") == {}
