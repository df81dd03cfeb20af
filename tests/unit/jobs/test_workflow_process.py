"""Snakemake as a child process: its command line, and its failure as one line."""

from pathlib import Path

import pytest

import lethe
from lethe.errors import LetheError
from lethe.jobs import workflow_process
from lethe.jobs.workflow_process import FailureSummary, checkout_folder, snakemake_command

FAILED_JOB = """\
Execute 1 jobs...
error: task 'add' has 3 usable examples
RuleException:
CalledProcessError in file "/x/rules/data.smk", line 80:
Command 'python x.py' returned non-zero exit status 1.
Error in rule prepare_task:
    message: None
    output: results/tiny/tasks/add/train.parquet
    log: results/tiny/logs/prepare_task/add.log (check log file(s) for error details)
Logfile results/tiny/logs/prepare_task/add.log:
error: task 'add' has 3 usable examples
Exiting because a job execution failed. Look above for error messages
WorkflowError:
At least one job did not complete successfully.
"""
TRACEBACK = """\
Traceback (most recent call last):
  File "/x/cli.py", line 3, in main
    call()
    ^^^^
PermissionError: [Errno 13] Permission denied: 'results'
"""


def read(text: str) -> tuple[FailureSummary, str]:
    summary = FailureSummary()
    shown = [line for line in text.splitlines(keepends=True) if summary.note(line)]
    return summary, "".join(shown)


def test_a_failed_job_is_named_with_its_reason_and_its_log():
    summary, shown = read(FAILED_JOB)
    assert shown == FAILED_JOB
    assert summary.message() == (
        "1 job failed (prepare_task): task 'add' has 3 usable examples; details: "
        "results/tiny/logs/prepare_task/add.log; run again to continue"
    )


def test_several_failed_jobs_are_counted():
    other = FAILED_JOB.replace("'add'", "'double'")
    message = read(FAILED_JOB + other)[0].message()
    assert message.startswith("2 jobs failed (prepare_task): task 'add' has")
    assert "(and 1 more error(s))" in message


def test_the_first_of_several_problems_is_part_of_the_reason():
    problems = "2 problem(s) with its 3 rows\n  - a.parquet: not a row\n  - b.parquet: not a row"
    message = read(FAILED_JOB.replace("task 'add' has 3 usable examples", problems))[0].message()
    assert "2 problem(s) with its 3 rows: a.parquet: not a row; details: results/" in message
    assert "b.parquet" not in message and "more error(s)" not in message


def test_a_traceback_is_not_shown_but_its_error_is_the_reason():
    summary, shown = read("Building DAG of jobs...\n" + TRACEBACK)
    assert shown == (
        "Building DAG of jobs...\nPermissionError: [Errno 13] Permission denied: 'results'\n"
    )
    assert summary.message() == "PermissionError: [Errno 13] Permission denied: 'results'"


def test_an_unknown_target_or_option_is_the_reason():
    assert read("MissingRuleException:\nNo rule to produce x.\n")[0].message() == (
        "No rule to produce x."
    )
    message = read("__main__.py: error: unrecognized arguments: --x\n")[0].message()
    assert "unrecognized arguments: --x" in message
    assert read("")[0].message().startswith("Snakemake failed")


@pytest.mark.parametrize(
    "options", [["--cores", "4"], ["--cores=4"], ["-c4"], ["-j", "2"], ["--profile", "p"]]
)
def test_all_cores_are_used_only_if_no_option_decides(options):
    experiment = Path("e.yaml")
    assert "all" in snakemake_command(Path("x"), experiment, ["-n", "--forceall"])
    command = snakemake_command(Path("x"), experiment, options)
    assert "all" not in command
    assert command[-2:] == ["--configfile", "e.yaml"]
    assert command[-2 - len(options) : -2] == options


def test_targets_after_dashes_come_last():
    command = snakemake_command(Path("x"), Path("e.yaml"), ["-R", "a", "--", "b"], leave_out=["c"])
    assert command[-5:] == ['leave_out=["c"]', "--configfile", "e.yaml", "--", "b"]
    assert "all" in snakemake_command(Path("x"), Path("e.yaml"), ["--", "--cores"])


def test_the_checkout_is_this_folder_or_that_of_the_library(tmp_path, monkeypatch):
    root = Path(lethe.__file__).resolve().parents[2]
    assert checkout_folder(root) == root
    assert checkout_folder(tmp_path) == root
    monkeypatch.setattr(lethe, "__file__", str(tmp_path / "a/b/c/__init__.py"))
    with pytest.raises(LetheError, match="needs a checkout of lethe"):
        checkout_folder(tmp_path)


def test_without_snakemake_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(workflow_process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LetheError, match="pip install"):
        workflow_process.run_snakemake(Path("e.yaml"))


def test_each_failed_job_is_kept_with_its_first_file():
    other = FAILED_JOB.replace("/add/train.parquet", "/double/train.parquet, x/eval.parquet")
    assert read(FAILED_JOB + other)[0].jobs == [
        ("prepare_task", "results/tiny/tasks/add/train.parquet"),
        ("prepare_task", "results/tiny/tasks/double/train.parquet"),
    ]


def test_tasks_are_left_out_by_a_setting_before_the_experiment():
    command = snakemake_command(Path("x"), Path("e.yaml"), ["-n"], leave_out=["a", "b"])
    assert command[-4:] == ["--config", 'leave_out=["a", "b"]', "--configfile", "e.yaml"]
