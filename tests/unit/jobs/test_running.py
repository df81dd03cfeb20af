import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lethe.errors import LetheError
from lethe.jobs import running


def test_a_job_writes_its_messages_to_the_log_and_to_the_terminal(tmp_path, capsys):
    log = tmp_path / "logs" / "job.log"
    running.run(lambda text: print(text, file=sys.stderr), str(log), text="3 steps")
    assert log.read_text() == "3 steps\n"
    assert capsys.readouterr().err == "3 steps\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_log_on_a_full_disk_costs_the_messages_and_not_the_job(tmp_path, capsys):
    log = tmp_path / "job.log"
    result = tmp_path / "result"
    log.symlink_to("/dev/full")

    def work() -> None:
        print("3 steps", file=sys.stderr)
        result.touch()

    running.run(work, str(log))
    assert result.exists() and "3 steps" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        running.run(lambda: 1 / 0, str(log))


def test_a_mistake_of_the_user_ends_a_job_with_its_message_alone(tmp_path, capsys):
    def fail():
        raise LetheError("tasks.csv: no such task; add it")

    terminal = sys.stderr
    with pytest.raises(SystemExit) as caught:
        running.run(fail, str(tmp_path / "job.log"))
    assert caught.value.code == 1
    for output in ((tmp_path / "job.log").read_text(), capsys.readouterr().err):
        assert "error: tasks.csv: no such task; add it" in output
        assert "Traceback" not in output
    assert sys.stderr is terminal


def test_messages_of_the_library_go_to_the_log_and_of_others_do_not(tmp_path):
    def work():
        logging.getLogger("lethe.engine").info("3 steps")
        logging.getLogger("another").info("noise")

    before = list(logging.getLogger("lethe").handlers)
    running.run(work, str(tmp_path / "job.log"))
    assert (tmp_path / "job.log").read_text() == "3 steps\n"
    assert logging.getLogger("lethe").handlers == before


def test_any_other_failure_leaves_its_traceback_in_the_log(tmp_path):
    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        running.run(fail, str(tmp_path / "job.log"))
    assert "RuntimeError: a bug" in (tmp_path / "job.log").read_text()
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_stderr_of_a_job_answers_like_a_stream(tmp_path):
    """Libraries check for a terminal before they draw bars or colours."""
    answers = []
    running.run(
        lambda: answers.append((sys.stderr.isatty(), sys.stderr.closed)), str(tmp_path / "log")
    )
    assert answers == [(False, False)]


@pytest.fixture
def environment(monkeypatch):
    """A copy of this process's environment, in place of it."""
    copy = dict(os.environ)
    monkeypatch.setattr(os, "environ", copy)
    return copy


def test_the_library_comes_first_for_jobs_and_once(environment):
    environment["PYTHONPATH"] = os.pathsep.join(["other", "lib"])
    running.set_job_environment("lib")
    running.set_job_environment("lib")
    assert environment["PYTHONPATH"] == os.pathsep.join(["lib", "other"])


@pytest.mark.parametrize(("delay", "shown"), [(None, False), ("0", True)])
def test_a_library_shows_no_progress_bar_for_what_is_done_at_once(environment, delay, shown):
    if delay is not None:
        environment["TQDM_DELAY"] = delay
    running.set_job_environment("lib")
    code = "from transformers.utils import logging; list(logging.tqdm([1], desc='Loading weights'))"
    job = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    assert job.returncode == 0
    assert (b"Loading weights" in job.stderr) == shown


INPUT = """
import sys
from lethe.jobs import running

def ask():
    try:
        print(f"answered {input('Run the custom code? [y/N] ')}")
    except EOFError:
        print("no answer")

running.run(ask, sys.argv[1])
print(f"afterwards {input()}")
"""


def test_no_question_of_a_library_is_answered_by_standard_input(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INPUT, str(tmp_path / "log")],
        input="y\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.endswith("no answer\nafterwards y\n"), done.stdout + done.stderr
