import numpy as np
import pytest
from helpers import findings as tiny_findings

from lethe.errors import LetheError
from lethe.report.findings import read_findings


def test_tables_are_read_by_model(tmp_path):
    read = tiny_findings.make_findings(tmp_path)
    assert list(read.matrices) == list(read.curves) == list(read.runs) == ["one", "two"]
    np.testing.assert_array_equal(read.matrices["two"].values, tiny_findings.z(1).values)
    assert list(read.upstream) == tiny_findings.upstream()
    assert (read.tasks["sums"].group, read.tasks["sums"].split) == ("NA", "test")


def test_names_that_look_like_numbers_or_missing_values_stay_names(tmp_path):
    table = tiny_findings.make_findings(tmp_path).summaries["one"]
    assert table.task.tolist() == list(tiny_findings.TASKS)
    assert table.group.tolist() == ["NA", "words", "NA", "words"]


def test_numbers_stay_numbers_and_empty_cells_are_nan(tmp_path):
    read = tiny_findings.make_findings(tmp_path)
    table = read.comparisons["one"].set_index("strategy")
    assert table.heldout_forgetting["oracle"] == pytest.approx(0.0, abs=1e-6)
    assert np.isnan(table.heldout_forgetting_difference_p_holm["random"])
    assert read.completions["one"].low.isna().sum() == len(tiny_findings.completion()) / 2


def test_an_experiment_without_models_has_no_fine_tunes(tmp_path):
    read = tiny_findings.make_findings(tmp_path, ["own"], imported=True)
    assert (read.summaries, read.comparisons, read.runs, read.upstream) == ({}, {}, {}, [])
    assert list(read.matrices) == ["own"]


def test_a_single_file_may_be_named_without_a_list(tmp_path):
    inputs = tiny_findings.write_tables(tmp_path, ["own"], imported=True)
    inputs = {key: paths[0] if paths else [] for key, paths in inputs.items()}
    assert list(read_findings(inputs, ["own"], tiny_findings.TASKS).completions) == ["own"]


def test_a_broken_matrix_is_named(tmp_path):
    inputs = tiny_findings.write_tables(tmp_path)
    with open(inputs["matrices"][1], "wb") as stream:
        stream.write(b"PAR1")
    with pytest.raises(LetheError, match="two-matrices: not a readable Z"):
        read_findings(inputs, ["one", "two"], tiny_findings.TASKS)
