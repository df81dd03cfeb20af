import os
import sys
from pathlib import Path

import pytest
from helpers import tiny

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import write_examples
from lethe.engine.progress import progress
from lethe.errors import LetheError
from lethe.files import write_json
from lethe.jobs import running
from lethe.matrix import rows


def test_a_job_writes_its_messages_to_the_log_and_to_the_terminal(tmp_path, capsys):
    log = tmp_path / "logs" / "job.log"
    running.run(lambda text: print(text, file=sys.stderr), str(log), text="3 steps")
    assert log.read_text() == "3 steps\n"
    assert capsys.readouterr().err == "3 steps\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_a_log_on_a_full_disk_costs_what_is_said_and_not_the_job(tmp_path, capsys):
    log, done = tmp_path / "job.log", tmp_path / "done"
    log.symlink_to("/dev/full")

    def work() -> None:
        print("3 steps", file=sys.stderr)
        done.touch()

    running.run(work, str(log))
    assert done.exists() and "3 steps" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        running.run(lambda: 1 / 0, str(log))


def test_a_mistake_of_the_user_ends_a_job_with_its_message_alone(tmp_path, capsys):
    def fail():
        raise LetheError("tasks.csv: no such task; add it")

    terminal = sys.stderr
    with pytest.raises(SystemExit) as caught:
        running.run(fail, str(tmp_path / "job.log"))
    assert caught.value.code == 1
    for said in ((tmp_path / "job.log").read_text(), capsys.readouterr().err):
        assert "error: tasks.csv: no such task; add it" in said
        assert "Traceback" not in said
    assert sys.stderr is terminal


def test_any_other_failure_leaves_its_traceback_in_the_log(tmp_path):
    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        running.run(fail, str(tmp_path / "job.log"))
    assert "RuntimeError: a bug" in (tmp_path / "job.log").read_text()
    assert "Traceback" in (tmp_path / "job.log").read_text()


def test_a_jobs_stderr_can_be_asked_what_streams_are_asked(tmp_path):
    """Libraries ask whether they write to a terminal before they draw bars or colours."""
    asked = []
    running.run(
        lambda: asked.append((sys.stderr.isatty(), sys.stderr.closed)), str(tmp_path / "log")
    )
    assert asked == [(False, False)]


def test_the_library_comes_first_for_jobs_and_once(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["other", "lib"]))
    running.export_library("lib")
    running.export_library("lib")
    assert os.environ["PYTHONPATH"] == os.pathsep.join(["lib", "other"])


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("LETHE_CACHE", "elsewhere")
    assert running.cache_folder() == "elsewhere"
    monkeypatch.delenv("LETHE_CACHE")
    assert running.cache_folder().endswith(os.path.join(".cache", "lethe"))


def test_a_fine_tune_is_read_from_the_files_of_its_rule(tmp_path):
    import numpy as np

    pairs = tiny.pairs(4)
    row = rows.Row(["a"], np.ones(1, "f4"), np.ones(1, "f4"), np.ones(1, "i4"), {"model": "m"})
    paths = {name: tmp_path / name for name in ("card", "base", "train", "evaluation")}
    write_json(paths["card"], {"path": "somewhere"})
    rows.write(paths["base"], row)
    write_examples(paths["train"], pairs[:3])
    write_examples(paths["evaluation"], pairs[3:])
    job = running.fine_tune_job(paths, {"steps": 7}, {"max_tokens": 9}, threads=1, gpu=False)
    assert (job.card, job.base.settings) == ({"path": "somewhere"}, {"model": "m"})
    assert (job.train, job.evaluation) == (pairs[:3], pairs[3:])
    assert (job.recipe, job.scoring) == (Recipe(steps=7), Scoring(max_tokens=9))
    grouped = {"steps": 7, "group_steps": {"g": 9}, "group": "g"}
    job = running.fine_tune_job(paths, grouped, {"max_tokens": 9}, threads=1, gpu=False)
    assert (job.recipe, job.group) == (Recipe(steps=7, group_steps={"g": 9}), "g")


def test_short_work_is_silent_and_all_of_it_is_done(capsys):
    assert list(progress(range(5), "scoring", "batch")) == list(range(5))
    assert capsys.readouterr().err.strip() == ""


def test_long_work_is_told_a_line_at_a_time(capsys):
    bar = progress(range(3), "scoring", "batch")
    bar.delay, bar.mininterval = 0, 0
    bar.refresh()
    assert "scoring: 0/3 batches," in capsys.readouterr().err
