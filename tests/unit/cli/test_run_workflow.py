"""`lethe run` checks an experiment, runs its workflow, and ends a failed run with one line."""

import json
import subprocess
import sys

import pytest
from helpers.experiment import ROOT, make_experiment

from lethe.cli.application import main
from lethe.jobs import workflow_process
from lethe.jobs.workflow_process import FailedWorkflow

TARGET = "results/tiny/tasks/add/train.parquet"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The tiny experiment as the current folder."""
    make_experiment(tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("LETHE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return tmp_path / "workspace"


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lethe", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    "options",
    [
        ["tiny.yaml", "--cores", "1", TARGET, "--json"],
        # Without the dashes, Snakemake would read the target as another rule.
        ["tiny.yaml", "--json", "--cores", "1", "--forcerun", "prepare_task", "--", TARGET],
    ],
)
def test_a_target_is_made_and_json_names_the_results(folder, options):
    process = run(*options)
    assert process.returncode == 0, process.stderr
    assert (folder / TARGET).exists()
    assert json.loads(process.stdout) == {
        "experiment": "tiny",
        "report": "results/tiny/report.html",
        "results": "results/tiny",
    }


def test_a_failed_job_ends_the_run_with_one_line(folder):
    texts = folder / "texts/add.jsonl"
    texts.write_text("\n".join(texts.read_text().splitlines()[:3]))
    process = run("tiny.yaml", "--cores", "1", TARGET)
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("error: 1 job failed (prepare_task): task 'add' has 3 usable examples")
    assert "results/tiny/logs/prepare_task/add.log" in last
    assert "Traceback" not in process.stderr


def test_an_experiment_is_checked_before_snakemake_starts(folder, capfd):
    path = folder / "tiny.yaml"
    text = path.read_text()
    path.write_text(text.replace("max_tokens: 24", "max_tokenz: 24"))
    number = path.read_text().splitlines().index("  max_tokenz: 24") + 1
    assert main(["run", "tiny.yaml", "-n"]) == 1
    message = capfd.readouterr().err
    assert f"tiny.yaml, line {number}: scoring.max_tokenz: no such key" in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1

    path.write_text(text + "\nrecipe: [1\n")
    assert main(["run", "tiny.yaml"]) == 1
    assert "tiny.yaml: 1 problem(s), nothing was started: line " in capfd.readouterr().err


ALIASES = ["a0: &a0 [x]"]
for number in range(1, 40):
    ALIASES.append(f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 9)}]")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"experiment: x\nmodels: {a: [\n", "line 3, column 1: not valid YAML"),
        (b"experiment: x\n\tmodels: a\n", "line 2, column 1: not valid YAML"),
        (b"experiment: \x00x\n", "not valid YAML"),
        (b"experiment: \xff\n", "save it as UTF-8"),
        (b"experiment: &a [*a]\n", "line 1: an anchor (&name) holds itself"),
        ("\n".join(ALIASES).encode(), "its aliases (*name) stand for more than 100,000 values"),
        (b"[" * 5000, "nested too deeply"),
        (b"experiment: x\nexperiment: y\n", "line 2: experiment stands twice"),
        (b"- a\n", "an experiment is a mapping of keys, not list"),
        (b"", "an experiment is a mapping of keys, not NoneType"),
        (b"experiment: !!python/object/apply:os.system ['touch run']\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment_ends_the_run_with_one_line(
    tmp_path, monkeypatch, capfd, content, cause
):
    """Snakemake itself would end with a traceback, or without the file's name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_bytes(content)
    assert main(["run", "bad.yaml", "-n"]) == 1
    message = capfd.readouterr().err
    assert message.startswith("error: bad.yaml: ") and cause in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_or_a_missing_file_ends_the_run_with_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    for name, cause in {"folder.yaml": "name a YAML file", "none.yaml": "no such file"}.items():
        assert main(["run", name, "-n"]) == 1
        message = capfd.readouterr().err
        assert message.startswith(f"error: {name}: ") and cause in message
        assert message.count("\n") == 1


def test_without_an_experiment_it_is_config_yaml(folder, capfd):
    assert main(["run", "-n"]) == 1
    assert "error: config.yaml: no such file" in capfd.readouterr().err


def test_an_experiment_by_snakemakes_option_is_a_wrong_use(folder, capfd):
    assert main(["run", "--configfile", "tiny.yaml"]) == 2
    assert "name the experiment first" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cores", "1", "tiny.yaml"],
        ["-n", "tiny.yml"],
        ["tiny.yaml", "-n", "other.yaml"],
        ["--profile", "folder", "tiny.yaml"],
    ],
)
def test_an_experiment_after_an_option_is_a_wrong_use(folder, capfd, arguments):
    """Snakemake would read it as a target of the default experiment."""
    assert main(["run", *arguments]) == 2
    assert "name the experiment first: lethe run" in capfd.readouterr().err


def test_a_yaml_file_that_an_option_takes_is_no_experiment(folder, monkeypatch):
    commands = []

    def run_snakemake(experiment, options, **_):
        commands.append([str(experiment), *options])

    monkeypatch.setattr(workflow_process, "run_snakemake", run_snakemake)
    options = ["--report-metadata", "a.yaml", "--wait-for-files", "b.yaml", "c.yaml", "--x=d.yaml"]
    assert main(["run", "tiny.yaml", *options]) == 0
    assert commands == [["tiny.yaml", *options]]


def test_a_run_without_failed_tasks_goes_on_until_no_other_task_fails(folder, monkeypatch, capfd):
    """Two tasks fail one after the other; a job of another kind would end the run."""
    failures = [("prepare_task", "results/tiny/tasks/add/train.parquet")]
    failures += [("measure_row", "results/tiny/olmo/rows/upper.parquet")]
    calls = []

    def run_snakemake(experiment, options, leave_out, stdout_to_stderr):
        calls.append(list(leave_out))
        if len(calls) <= len(failures):
            raise FailedWorkflow("1 job failed", failures[len(calls) - 1 : len(calls)])

    monkeypatch.setattr(workflow_process, "run_snakemake", run_snakemake)
    assert main(["run", "tiny.yaml", "--without-failed"]) == 0
    assert calls == [[], ["add"], ["add", "upper"]]
    assert "warning: the report and all tables are without add, upper" in capfd.readouterr().err
    failures[:] = [("pretrain_model", "results/tiny/olmo/model.json")]
    calls.clear()
    assert main(["run", "tiny.yaml", "--without-failed"]) == 1
    assert calls == [[]]


def test_a_setting_of_snakemake_does_not_go_with_left_out_tasks(folder, capfd):
    assert main(["run", "tiny.yaml", "--without-failed", "--config", "seed=1"]) == 2
    assert "cannot be combined" in capfd.readouterr().err
