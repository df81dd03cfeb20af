import numpy as np
import pytest
from helpers import found

from lethe.errors import LetheError
from lethe.report import findings


def test_tables_are_read_by_model(tmp_path):
    read = found.read(tmp_path)
    assert list(read.matrices) == list(read.curves) == list(read.runs) == ["one", "two"]
    np.testing.assert_array_equal(read.matrices["two"].values, found.z(1).values)
    assert list(read.upstream) == found.upstream()
    assert read.tasks["sums"] == ("NA", "test")


def test_names_that_look_like_numbers_or_missing_values_stay_names(tmp_path):
    table = found.read(tmp_path).summaries["one"]
    assert table.task.tolist() == list(found.TASKS)
    assert table.group.tolist() == ["NA", "words", "NA", "words"]


def test_numbers_stay_numbers_and_empty_cells_are_nan(tmp_path):
    read = found.read(tmp_path)
    table = read.comparisons["one"].set_index("strategy")
    assert table.heldout_forgetting["oracle"] == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(table.heldout_forgetting_difference_p_holm["random"])
    assert read.completions["one"].low.isna().sum() == len(found.completion()) / 2


def test_an_experiment_without_models_has_no_fine_tunes(tmp_path):
    read = found.read(tmp_path, ("own",), own=True)
    assert (read.summaries, read.comparisons, read.runs, read.upstream) == ({}, {}, {}, [])
    assert list(read.matrices) == ["own"]


def test_a_single_file_may_be_named_without_a_list(tmp_path):
    inputs = found.write(tmp_path, ("own",), own=True)
    inputs = {key: paths[0] if paths else [] for key, paths in inputs.items()}
    assert list(findings.read(inputs, ["own"], found.TASKS).completions) == ["own"]


def test_a_broken_matrix_is_named(tmp_path):
    inputs = found.write(tmp_path)
    with open(inputs["matrices"][1], "wb") as stream:
        stream.write(b"PAR1")
    with pytest.raises(LetheError, match="two-matrices: not a readable Z"):
        findings.read(inputs, ["one", "two"], found.TASKS)
