from pathlib import Path

import numpy as np
import pytest

from lethe.errors import RowError
from lethe.matrix.prediction_files import (
    read_prediction_file,
    stack_prediction_files,
    write_prediction_file,
)

IDS = ["a-00001", "a-00002", "a-00003"]


def write(path: Path, size: float = 1.0, ids=IDS, **more) -> Path:
    kl = size * np.array([0.1, np.nan, 0.3], dtype=np.float32)[: len(ids)]
    write_prediction_file(path, ids, {"kl": kl, "top1_changed": kl / 2, **more})
    return path


def test_measures_come_back_as_they_were_with_the_same_bytes(tmp_path):
    one = write(tmp_path / "one.parquet")
    two = write(tmp_path / "two.parquet")
    assert one.read_bytes() == two.read_bytes()
    read = read_prediction_file(one)
    assert read.example_ids == IDS
    np.testing.assert_array_equal(read.measures["kl"], np.float32([0.1, np.nan, 0.3]))


def test_files_are_stacked_in_the_order_of_the_tasks(tmp_path):
    files = {"a": write(tmp_path / "a"), "b": write(tmp_path / "b", size=2.0)}
    stacked = stack_prediction_files(files, IDS)
    np.testing.assert_allclose(stacked["kl"][:, 0], [0.1, 0.2], rtol=1e-6)
    assert stacked["top1_changed"].shape == (2, 3)


def test_files_of_other_examples_or_measures_are_refused_by_name(tmp_path):
    files = {"a": write(tmp_path / "a"), "b": write(tmp_path / "b.parquet", ids=IDS[:2])}
    with pytest.raises(RowError, match=r"b\.parquet: its 2 examples are not the 3"):
        stack_prediction_files(files, IDS)
    write(tmp_path / "b.parquet", entropy_after=np.zeros(3))
    with pytest.raises(RowError, match=r"b\.parquet: has the measures kl, top1_changed, entropy"):
        stack_prediction_files(files, IDS)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = write(tmp_path / "cut.parquet")
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(RowError, match=r"cut\.parquet: not a readable file of changed predictions"):
        read_prediction_file(path)
