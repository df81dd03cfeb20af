"""`snakemake --configfile FILE` itself: a wrong file ends in one line that names it."""

import os
import subprocess
import sys

import pytest
from helpers.experiment import ROOT


def plan(*arguments: str, profile: str = "default", **settings) -> subprocess.CompletedProcess:
    """A dry run of Snakemake, as a user starts it without lethe's own command."""
    program = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run"]
    program += ["--snakefile", str(ROOT / "Snakefile")]
    program += ["--workflow-profile", str(ROOT / "profiles" / profile)]
    return subprocess.run(
        [*program, *arguments], capture_output=True, text=True, timeout=300, check=False, **settings
    )


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "no such file"),
        (b"experiment: x\nmodels: {a: [\n", "line 3, column 1: not valid YAML"),
        (b"experiment: \xff\n", "save it as UTF-8"),
        (b"", "an experiment is a mapping of keys, not NoneType"),
        pytest.param(b"[" * 5000, "nested too deeply", id="nested"),
        (b"a: !!python/object/apply:os.system ['touch run']\n", "not valid YAML"),
    ],
)
def test_a_wrong_config_file_ends_in_one_line_that_names_it(tmp_path, content, cause):
    if content is not None:
        (tmp_path / "bad.yaml").write_bytes(content)
    process = plan("--configfile", "bad.yaml", cwd=tmp_path)
    assert process.returncode == 1
    message = process.stderr.partition("command line arguments.\n")[2]
    assert message.startswith("error: bad.yaml: ") and cause in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_target_after_the_config_file_is_named_with_its_right_place(tmp_path):
    target = "results/default/report.html"
    process = plan("--configfile", str(ROOT / "config.yaml"), target, cwd=tmp_path)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith(f"error: {target}: no such file")
    assert "name it before --configfile" in last


def test_the_profile_of_the_cluster_refuses_a_wrong_config_file_too(tmp_path):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    process = plan("--configfile", "none.yaml", profile="slurm", cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: none.yaml: no such file")


def test_the_profile_needs_no_installed_library(tmp_path):
    """Of the library beside the Snakefile, even if an older one is installed."""
    older = tmp_path / "older/lethe"
    older.mkdir(parents=True)
    (older / "__init__.py").write_text("raise SystemExit('the wrong library')\n")
    environment = os.environ | {"PYTHONPATH": str(older.parent)}
    process = plan("--configfile", "none.yaml", cwd=tmp_path, env=environment)
    assert process.stderr.splitlines()[-1].startswith("error: none.yaml: no such file")
