"""Whose results a folder of `lethe learn` holds. The verb runs in tests/workflow."""

import shutil
from pathlib import Path

import pytest
import yaml
from helpers import tiny
from helpers.experiment import TASKS

from lethe.cli import learn_predictor
from lethe.cli.application import main
from lethe.config import loading
from lethe.data.examples import write_upstream
from lethe.errors import LetheError
from lethe.jobs import workflow_process

RESULTS = Path("results/learn-predictor")


class Started(Exception):
    """The workflow would have started."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_upstream(tmp_path / "pool.parquet", tiny.upstream(12))
    (tmp_path / "sources.yaml").write_text(
        yaml.safe_dump({"local": {"kind": "files", "folder": "texts"}})
    )
    (tmp_path / "table.csv").write_text(TASKS)
    for name in ("base", "other"):
        (tmp_path / name).mkdir()

    # The models and the tasks' examples do not exist.
    monkeypatch.setattr("lethe.config.loading.load_experiment", lambda *_files, **_named: None)

    def start(*_arguments, **_named):
        raise Started

    monkeypatch.setattr(workflow_process, "run_snakemake", start)
    return tmp_path


def learn(model, output, *options):
    shared = ["--pool", "pool.parquet", "--tasks", "3", "--table", "table.csv"]
    return main(["learn", model, *shared, "--sources", "sources.yaml", "-o", output, *options])


def starts(model, output, *options) -> bool:
    with pytest.raises(Started):
        learn(model, output, *options)
    return True


def test_predictors_of_one_name_in_two_folders_do_not_share_results(folder, capsys):
    assert starts("base", "a/predictor.npz")
    assert learn("other", "b/predictor.npz") == 1
    message = capsys.readouterr().err
    other = folder / "a/predictor.experiment/experiment.yaml"
    assert f"error: {RESULTS}: holds the results of {other}; give -o another file" in message
    assert not Path("b").exists(), "nothing is written before the refusal"
    assert starts("other", "b/second.npz")
    assert starts("base", "a/predictor.npz", "--tasks", "4")


def test_a_moved_experiment_keeps_its_results_only_with_its_settings(folder, capsys):
    assert starts("base", "a/predictor.npz")
    shutil.move("a", "moved")
    assert learn("base", "b/predictor.npz", "--steps", "7") == 1
    assert learn("other", "b/predictor.npz") == 1
    assert "give -o another file name than predictor.npz" in capsys.readouterr().err
    assert starts("base", "b/predictor.npz")


def test_results_without_a_record_are_kept_for_the_experiment_that_is_there(folder, capsys):
    assert starts("base", "predictor.npz")
    (RESULTS / "experiment_file.json").unlink()
    assert learn("other", "b/predictor.npz") == 1
    assert "an experiment that lethe learn did not write here" in capsys.readouterr().err
    assert starts("base", "predictor.npz")


@pytest.mark.parametrize("content", ["", "- local\n", "sources: 3\n"])
def test_sources_that_are_no_mapping_are_named(folder, capsys, content):
    (folder / "sources.yaml").write_text(content)
    assert learn("base", "a/predictor.npz") == 1
    error = capsys.readouterr().err
    assert "sources.yaml" in error and "is no mapping of sources" in error
    assert not Path("a").exists()


def test_an_impossible_output_or_number_of_probes_is_refused_before_anything_is_written(
    folder, capsys
):
    (folder / "notes.npz").write_text("my only copy")
    (folder / "out").mkdir()
    for output, message in (
        ("notes.npz", "-o notes.npz: exists and is no predictor; choose another name"),
        ("pool.parquet", "-o pool.parquet: is the pool itself"),
        ("out", "-o out: is a folder"),
        ("my predictor.npz", "the name of the file may only hold letters, digits"),
    ):
        assert learn("base", output) == 1
        assert message in capsys.readouterr().err
    assert (folder / "notes.npz").read_text() == "my only copy"
    write_upstream(folder / "pool.parquet", tiny.upstream(1))
    assert learn("base", "a/predictor.npz") == 1
    assert "pool.parquet: has 1 example; a predictor needs at least two" in capsys.readouterr().err
    assert not Path("a").exists() and not Path("results").exists()


def test_a_small_pool_is_probed_but_for_one_example(folder):
    assert learn_predictor._count_probes(30, folder / "pool.parquet") == 11
    assert learn_predictor._count_probes(5, folder / "pool.parquet") == 5


def test_a_refused_experiment_leaves_nothing_and_does_not_stand_in_the_way(folder, monkeypatch):
    def refuse(*_files, **_named):
        raise LetheError("recipe.lr: -1")

    accept = loading.load_experiment
    monkeypatch.setattr(loading, "load_experiment", refuse)
    assert learn("base", "a/predictor.npz", "--lr", "-1") == 1
    assert not Path("a/predictor.experiment").exists() and not RESULTS.exists()
    monkeypatch.setattr(loading, "load_experiment", accept)
    assert starts("base", "a/predictor.npz")
    # Planned only: other settings may still be given. Later they would mix with finished rows.
    assert starts("base", "a/predictor.npz", "--steps", "7")
    (RESULTS / "model/rows").mkdir(parents=True)
    (RESULTS / "model/rows/t.parquet").touch()
    assert learn("base", "a/predictor.npz", "--steps", "8") == 1
    assert starts("base", "a/predictor.npz", "--steps", "7")
