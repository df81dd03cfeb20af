"""`lethe show` describes files."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lethe.cli.application import main
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


def test_a_row_is_shown_with_settings_versions_and_data(row, capsys):
    assert main(["show", str(row)]) == 0
    shown = capsys.readouterr().out
    for part in ("5 examples", "mean forgetting 0.5000", '"lr": 0.25', '"torch"', '"train": "123"'):
        assert part in shown


def test_a_matrix_is_shown_by_its_rows(row, capsys):
    assert main(["show", str(row.parents[1] / "Z.parquet")]) == 0
    assert "sums.parquet: 5 examples" in capsys.readouterr().out


def test_a_file_that_was_changed_or_is_none_is_an_error(row, capsys):
    row.write_bytes(row.read_bytes()[:-40])
    assert main(["show", str(row)]) == 1
    assert f"error: {row}" in capsys.readouterr().err
    assert main(["show", str(row.parent / "Z.parquet")]) == 1
    assert "no rows beside it" in capsys.readouterr().err
    assert main(["show"]) == 2


def test_json_holds_the_facts_of_every_file(row, capsys):
    assert main(["show", "--json", str(row), str(row)]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == second
    assert first["file"] == str(row)
    assert first["examples"] == 5
    assert first["mean_forgetting"] == 0.5
    assert first["lost_answers"] is None
    assert first["settings"]["recipe"] == {"lr": 0.25}


def test_a_row_without_a_number_has_null_in_json(row, capsys):
    made = rows.read_row(row)
    nothing = np.full(5, np.nan, dtype=np.float32)
    rows.write_row(row, rows.Row(made.example_ids, nothing, nothing, made.n_tokens, {}, {}))
    assert main(["show", "--json", str(row)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["mean_forgetting"] is None


@pytest.mark.parametrize("content", ["text", "table", "row"])
def test_no_file_is_advised_to_be_deleted(row, content, tmp_path, capsys):
    path = tmp_path / "only-copy.parquet"
    if content == "text":
        path.write_text("a diary")
    elif content == "table":
        pq.write_table(pa.table({"prompt": ["mine"]}), path)
    else:
        path.write_bytes(row.read_bytes()[:-40])
    before = path.read_bytes()
    assert main(["show", str(path)]) == 1
    message = capsys.readouterr().err
    assert str(path) in message
    assert not {"delete", "remove", "rm"} & set(message.replace(";", " ").split())
    assert path.read_bytes() == before


def test_the_commit_of_a_checkout_is_read_from_gits_own_files():
    import subprocess
    from pathlib import Path

    root = Path(__file__).parents[3]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    assert models.checkout() == done.stdout.strip()
