import numpy as np
import pytest
from helpers import findings

from lethe import tables
from lethe.errors import LetheError
from lethe.replay import runs


def test_a_table_has_the_columns_of_all_its_records_and_seven_digits(tmp_path):
    records = [{"a": 1, "b": 1 / 3}, {"a": 2, "c": np.float32(0.5)}, {"b": float("nan")}]
    tables.write_csv(tmp_path / "t.csv", records)
    assert (tmp_path / "t.csv").read_text() == "a,b,c\n1,0.3333333,\n2,,0.5\n,nan,\n"


def test_text_with_commas_and_breaks_comes_back(tmp_path):
    import pandas as pd

    tables.write_csv(tmp_path / "t.csv", [{"text": 'a, "b"\nc'}])
    assert pd.read_csv(tmp_path / "t.csv").text[0] == 'a, "b"\nc'


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_is_never_a_formula_of_a_spreadsheet(tmp_path, text):
    import pandas as pd

    tables.write_csv(tmp_path / "t.csv", [{"group": text, "n": -1, "x": -0.5, "typed": "-3e-2"}])
    table = pd.read_csv(tmp_path / "t.csv", dtype=str)
    assert table.iloc[0].to_list() == ["'" + text.replace("\r", "\n"), "-1", "-0.5", "-3e-2"]


@pytest.mark.parametrize("text", ["=1+1", "@user", "'=1", "''+x", "'quoted'", "-a", "it's"])
def test_text_comes_back_as_it_was_although_spreadsheets_do_not_run_it(tmp_path, text):
    tables.write_csv(tmp_path / "t.csv", [{"domain": text, "name": "x"}])
    assert tables.read_csv(tmp_path / "t.csv").domain[0] == text
    written = (tmp_path / "t.csv").read_text().splitlines()[1]
    assert not written.lstrip('"').startswith(tables.FORMULA_STARTS)


def test_names_stay_text_and_missing_numbers_are_nan(tmp_path):
    records = [
        {"model": "007", "task": "NA", "source": "1e3", "value": 1.5, "money": None},
        {"model": "1", "task": "null", "source": "x", "value": float("nan"), "money": None},
    ]
    tables.write_csv(tmp_path / "t.csv", records)
    table = tables.read_csv(tmp_path / "t.csv")
    assert table.model.to_list() == ["007", "1"] and table.task.to_list() == ["NA", "null"]
    assert table.source.to_list() == ["1e3", "x"]
    assert table.value[0] == 1.5 and np.isnan([table.value[1], *table.money]).all()


def test_a_table_of_nothing_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(LetheError, match=r"t\.csv: there is nothing to write"):
        tables.write_csv(tmp_path / "t.csv", [])
    assert not list(tmp_path.iterdir())


def test_a_summary_leaves_out_what_could_not_be_measured():
    values = findings.z()
    line = findings.summaries(values)[2]
    known = np.delete(values.values[2], [5, 7])
    assert line["mean_forgetting"] == pytest.approx(known.mean())
    assert line["sd_forgetting"] == pytest.approx(known.std())
    assert (line["task"], line["group"], line["split"]) == ("sums", "NA", "test")


def test_a_fine_tune_of_which_nothing_is_known_has_a_mean_of_nan():
    values = findings.z()
    values.values[0] = np.nan
    assert np.isnan(findings.summaries(values)[0]["mean_forgetting"])


def test_a_line_of_a_replay_run_keeps_what_is_compared():
    from lethe.matrix.rows import Row

    facts = findings.runs()[0]
    one = np.ones(1, np.float32)
    assert runs.replay_line(Row(["a"], one, one, one, {}, {**facts, "other": 1})) == facts
