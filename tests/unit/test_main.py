"""What the command `lethe` says of files."""

import numpy as np
import pytest

from lethe.__main__ import main
from lethe.engine import models
from lethe.matrix import rows


@pytest.fixture
def row(tmp_path):
    values = np.linspace(0, 1, 5, dtype=np.float32)
    settings = {"recipe": {"lr": 0.25}, "upstream": "abc"}
    about = {"versions": {"torch": "2.13.0"}, "data": {"train": "123"}}
    ids = [f"e{i}" for i in range(5)]
    path = tmp_path / "m/rows/sums.parquet"
    count = np.ones(5, dtype=np.int32)
    rows.write_row(path, rows.Row(ids, values, values + 0.5, count, settings, about))
    return path


def test_a_row_is_told_with_settings_versions_and_data(row, capsys):
    assert main([str(row)]) == 0
    said = capsys.readouterr().out
    for part in ("5 examples", "mean forgetting 0.5000", '"lr": 0.25', '"torch"', '"train": "123"'):
        assert part in said


def test_a_matrix_is_told_by_its_rows(row, capsys):
    assert main([str(row.parents[1] / "Z.parquet")]) == 0
    assert "sums.parquet: 5 examples" in capsys.readouterr().out


def test_a_file_that_was_changed_or_is_none_is_an_error(row, capsys):
    row.write_bytes(row.read_bytes()[:-40])
    assert main([str(row)]) == 1
    assert f"error: {row}" in capsys.readouterr().err
    assert main([str(row.parent / "Z.parquet")]) == 1
    assert "no rows beside it" in capsys.readouterr().err
    assert main([]) == 2


def test_the_commit_of_a_checkout_is_read_from_gits_own_files():
    import subprocess
    from pathlib import Path

    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert models.checkout() == done.stdout.strip()


def test_a_file_that_is_no_row_is_never_advised_to_be_deleted(tmp_path, capsys):
    (tmp_path / "thesis.parquet").write_bytes(b"the only copy")
    assert main([str(tmp_path / "thesis.parquet")]) == 1
    message = capsys.readouterr().err
    assert "thesis.parquet: not a readable row" in message and "delete" not in message
