import numpy as np
import pytest

from lethe.errors import RowError
from lethe.matrix.token_files import TokenLosses, read_token_file, write_token_file


def example(**changes) -> TokenLosses:
    values = {
        "example_id": "a-00001",
        "tokens": ["Say", " <b>", "", "🦜"],
        "before": np.array([np.nan, 1.5, 0.25, 3], dtype=np.float16),
        "after": np.array([np.nan, 2.5, 0.25, 1], dtype=np.float16),
    }
    return TokenLosses(**values | changes)


def test_token_losses_come_back_as_they_were_and_have_the_same_bytes(tmp_path):
    examples = [example(), example(example_id="a-00002")]
    write_token_file(tmp_path / "one.parquet", examples)
    write_token_file(tmp_path / "two.parquet", examples)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    read = read_token_file(tmp_path / "one.parquet")
    assert [line.example_id for line in read] == ["a-00001", "a-00002"]
    assert read[0].tokens == examples[0].tokens
    np.testing.assert_array_equal(read[0].before, examples[0].before)
    np.testing.assert_array_equal(read[0].after, examples[0].after)
    assert read[0].after.dtype == np.float16


def test_a_row_without_a_measured_example_has_an_empty_file(tmp_path):
    write_token_file(tmp_path / "none.parquet", [])
    assert read_token_file(tmp_path / "none.parquet") == []


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "cut.parquet"
    write_token_file(path, [example()])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RowError, match=r"cut\.parquet: not a readable file of token losses"):
        read_token_file(path)
    write_token_file(path, [example(tokens=["one"])])
    with pytest.raises(RowError, match="columns of other lengths"):
        read_token_file(path)
