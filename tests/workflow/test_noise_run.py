"""The noise floor and the comparison of models, through the graph."""

import json

import pandas as pd
import pytest

from lethe.matrix import forgetting_matrix, rows

pytestmark = pytest.mark.xdist_group("workflow")


def test_models_are_predicted_from_each_other_where_there_are_two(finished):
    table = pd.read_csv(finished.results / "transfer.csv")
    assert set(zip(table.source, table.target, strict=True)) == {
        ("olmo", "pythia"),
        ("pythia", "olmo"),
    }


def test_asking_for_a_noise_floor_repeats_what_is_named_and_nothing_else(copied):
    with copied.edit() as settings:
        settings["noise"] = {"tasks": ["reverse"], "trainings": 1, "measurements": 1}
    before = copied.rows()
    planned = copied.planned()
    assert (planned["repeat_row"], planned["noise_floor"]) == (2, 2)
    assert not {"measure_row", "pretrain_model", "replay_run", "gather_matrix"} & set(planned)
    copied.run("--until", "noise_floor")
    assert copied.rows() == before
    repeat = rows.read_row(copied.results / "olmo/repeats/reverse-seed1.parquet")
    assert repeat.settings["recipe"]["seed"] == 1
    report = json.loads((copied.results / "olmo/noise.json").read_text())
    assert report["repeats"] == {"reverse": 2}
    assert report["sigma"]["training"] > report["sigma"]["engine"]
    assert forgetting_matrix.read_matrix(copied.results / "olmo/noise.parquet").tasks == [
        "training",
        "engine",
    ]
    assert copied.planned() == {"draw_plots": 1, "write_report": 1}
