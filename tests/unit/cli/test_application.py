"""The command: help, version, exit codes, and errors as one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import lethe
from lethe.cli import application
from lethe.cli.application import app, main

ROOT = Path(__file__).parents[3]
VERBS = sorted(typer.main.get_command(app).commands)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lethe {lethe.__version__}\n"


def test_the_help_names_every_verb_and_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in [*VERBS, "Exit codes: 0", "--version"]:
        assert part in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_and_json(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"lethe {verb} " in text
    assert "--json" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["show"], ["show", "--nonsense", "x"]])
def test_a_wrong_use_has_exit_code_2(arguments):
    assert main(arguments) == 2


def test_the_module_is_the_command_and_its_help_imports_no_torch():
    program = (
        "import sys; from lethe.cli.application import main; status = main(['--help']); "
        "assert not {'torch', 'scipy', 'pandas', 'snakemake'} & set(sys.modules); sys.exit(status)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    commands = [["-c", program], ["-m", "lethe", "--help"]]
    texts = []
    for command in commands:
        process = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
        )
        texts.append(process.stdout)
    assert texts[0] == texts[1]


def test_an_error_is_one_line_on_stderr_without_a_traceback(tmp_path, capsys):
    assert main(["show", str(tmp_path / "none.parquet")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path}/none.parquet: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("folder", "cause"),
    [
        ("file", "is a file, but a folder is needed; nothing was written"),
        ("x" * 5000, "cannot be read or written (File name too long"),
        ("/proc/x", "cannot be read or written (No such file"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, folder, cause):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["init", folder]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: {folder[:300]}")
    assert cause in message
    assert message.count("\n") == 1 and len(message) < 500


def test_a_file_that_arrow_cannot_open_is_one_line(monkeypatch, capsys):
    error = OSError("Failed to open local file 'a.parquet'")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(application.typer.core.TyperGroup, "main", fail)
    assert main(["show", "a.parquet"]) == 1
    assert capsys.readouterr().err == (
        f"error: a file cannot be read or written (OSError: {error})\n"
    )
