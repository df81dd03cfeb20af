"""`lethe init` writes an experiment that loads, and overwrites nothing."""

import json
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from lethe.cli.application import main
from lethe.config.data_settings import TaskExamples
from lethe.config.loading import load_experiment
from lethe.config.yaml_file import read_yaml
from lethe.data.examples import read_upstream
from lethe.data.sources import task_examples
from lethe.data.training_rows import read_new_data

ROOT = Path(__file__).parents[3]
FILES = [
    "chats/orders.jsonl",
    "chats/returns.jsonl",
    "own-data.yaml",
    "tasks.csv",
    "texts/guide.txt",
    "texts/handbook.txt",
]


@pytest.mark.parametrize(
    "folder",
    [
        "own",
        "deep/er/own",
        ".",
        "my/experiments/own-data",
        "notes #1",
        "a: b",
        "it's mine, all [1]",
        'say "hi"',
        "😀",
    ],
)
def test_the_experiment_loads_from_any_folder_and_all_chats_are_read(
    tmp_path, monkeypatch, capsys, folder
):
    monkeypatch.chdir(tmp_path)
    assert main(["init", folder, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["files"] == [(Path(folder) / name).as_posix() for name in FILES]
    experiment = Path(written["experiment"])
    loaded = load_experiment(read_yaml(experiment), files=[experiment])
    settings = loaded.settings
    for task in loaded.tasks.values():
        key, _, where = task.source.partition(":")
        train, evaluation = task_examples(
            settings.sources[key], where, TaskExamples().model_dump(), seed=0, task=task.name
        )
        count = 20 if task.name == "support" else 10
        assert len(train) + len(evaluation) == count
        assert all(example.chat for example in train)


def test_the_pool_and_the_mixture_of_the_example_are_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "own"]) == 0
    assert "Next: lethe pool own/own-data.yaml -o pool.parquet" in capsys.readouterr().out
    assert main(["pool", "own/own-data.yaml", "-o", "pool.parquet"]) == 0
    assert len(read_upstream("pool.parquet")) == 48
    mix = ["mix", "own/chats/orders.jsonl", "--pool", "pool.parquet", "-o", "mixed"]
    assert main([*mix, "--ratio", "0.5"]) == 0
    assert len(read_new_data(tmp_path / "mixed/train_with_replay.jsonl").examples) == 15


def test_a_file_that_exists_is_not_overwritten_and_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tasks.csv").write_text("mine")
    assert main(["init", "own"]) == 1
    assert "own/tasks.csv: exists, and no file of yours is overwritten" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["tasks.csv"]
    assert (tmp_path / "own/tasks.csv").read_text() == "mine"
    (tmp_path / "link").mkdir()
    (tmp_path / "link/own-data.yaml").symlink_to("nowhere")
    assert main(["init", "link"]) == 1


@pytest.mark.parametrize("name", ["own/texts", "own"])
def test_a_file_where_a_folder_is_needed_is_named_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert main(["init", "own"]) == 1
    assert f"error: {name}: is a file, but a folder is needed" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_the_next_command_is_quoted_for_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my data"]) == 0
    text = capsys.readouterr().out
    assert "Next: lethe pool 'my data/own-data.yaml' -o pool.parquet" in text
    assert "lethe run 'my data/own-data.yaml' --cores 2" in text


def test_the_checkout_has_the_example_and_the_wheel_will_hold_it():
    source = ROOT / "src/lethe/cli/own_data"
    assert (ROOT / "experiments/own-data").resolve() == source.resolve()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["lethe.cli"]
    names = sorted(
        path.relative_to(source.parent).as_posix() for path in source.rglob("*") if path.is_file()
    )
    assert [name.removeprefix("own_data/") for name in names] == FILES
    for name in names:
        assert any(
            fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns
        )
