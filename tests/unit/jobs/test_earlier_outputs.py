"""Earlier outputs come back with their content and time, unless all of them were made again."""

import errno
import os
import subprocess
import sys

import pytest

from lethe.jobs.earlier_outputs import EarlierOutputs


@pytest.fixture
def outputs(tmp_path):
    """Two outputs of one job, a day old."""
    files = [tmp_path / "tasks/add/train", tmp_path / "tasks/add/eval"]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_text(f"old {file.name}")
        os.utime(file, (1e9, 1e9))
    return files


def keep(earlier, outputs):
    [job] = earlier.keep([{str(file): {"rule": file.name} for file in outputs}])
    return job


@pytest.mark.parametrize("has_links", [True, False])
def test_removed_outputs_come_back_with_their_times(outputs, tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    job = keep(EarlierOutputs(tmp_path / "kept"), outputs)
    assert job.has_outputs()
    for file in outputs:
        file.unlink()
    outputs[0].parent.rmdir()
    assert not job.has_outputs()
    job.put_back()
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]
    assert [file.stat().st_mtime for file in outputs] == [1e9, 1e9]


def test_outputs_of_one_job_come_back_together(outputs, tmp_path):
    job = keep(EarlierOutputs(tmp_path / "kept"), outputs)
    for file in outputs:
        file.unlink()
        file.write_text("new")
    assert job.has_outputs(), "made again, so that none has to come back"
    outputs[1].unlink()
    assert not job.has_outputs()
    job.put_back()
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]


def start_keeping(folder, outputs, then="pass"):
    """Starts a process that keeps these outputs, waits for a line, and then runs some code."""
    code = (
        "import sys; from pathlib import Path; "
        "from lethe.jobs.earlier_outputs import EarlierOutputs; "
        "earlier = EarlierOutputs(Path(sys.argv[1])); "
        "[job] = earlier.keep([{file: {'rule': Path(file).name} for file in sys.argv[2:]}]); "
        f"print(flush=True); sys.stdin.readline(); {then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, outputs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process


@pytest.fixture
def killed(outputs, tmp_path):
    """The process that kept the outputs and was killed."""
    process = start_keeping(tmp_path / "kept", outputs)
    process.kill()
    process.wait(60)
    return process.pid


def test_the_next_run_puts_back_what_a_killed_one_kept(killed, outputs, tmp_path):
    for file in outputs:
        file.unlink()
    (again, [job]), *rest = EarlierOutputs(tmp_path / "kept").killed_runs()
    assert again.number == killed and not rest
    assert job.records == {str(file): {"rule": file.name} for file in outputs}
    assert not (tmp_path / "kept").exists(), "nothing is left"


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_is_killed_while_it_puts_back_loses_nothing(killed, outputs, tmp_path, times):
    for _ in range(times):
        for file in outputs:
            file.unlink()
        runs = EarlierOutputs(tmp_path / "kept").killed_runs()
        _, [job] = next(runs)
        job.put_back()
        # It never asks for the next one.
        runs.close()
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]
    assert (tmp_path / "kept").exists()


def test_who_may_only_read_the_results_leaves_them_alone(killed, outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert list(EarlierOutputs(tmp_path / "kept").killed_runs()) == []
    assert (tmp_path / "kept").exists()


def test_a_run_that_had_not_written_down_its_jobs_had_started_none(killed, outputs, tmp_path):
    [jobs] = (tmp_path / "kept").glob("*/jobs.json")
    jobs.rename(jobs.with_name(".jobs.json.1.part"))
    [(_, found)] = EarlierOutputs(tmp_path / "kept").killed_runs()
    assert found == []
    assert not (tmp_path / "kept").exists()


def test_several_jobs_keep_their_outputs_apart(outputs, tmp_path):
    earlier = EarlierOutputs(tmp_path / "kept")
    assert earlier.keep([]) == [] and not (tmp_path / "kept").exists()
    first, second = earlier.keep([{str(file): None} for file in outputs])
    for file in outputs:
        file.unlink()
    second.put_back()
    assert not first.has_outputs() and second.has_outputs()
    assert outputs[1].read_text() == "old eval"


def test_a_kept_output_that_is_gone_is_not_put_back(killed, outputs, tmp_path):
    [kept] = (tmp_path / "kept").glob("*/0")
    kept.unlink()
    assert [jobs for _, jobs in EarlierOutputs(tmp_path / "kept").killed_runs()] == [[]]


def test_two_runs_at_a_time_keep_their_own_outputs(outputs, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("of the other run")
    running = start_keeping(tmp_path / "kept", [other], "job.put_back(); earlier.clear()")
    earlier = EarlierOutputs(tmp_path / "kept")
    assert list(earlier.killed_runs()) == [], "a run that goes on is not a killed one"
    job = keep(earlier, outputs)
    for file in (*outputs, other):
        file.unlink()
    job.put_back()
    earlier.clear()
    running.communicate("go on\n", timeout=60)
    assert running.returncode == 0
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]
    assert other.read_text() == "of the other run"
    assert not (tmp_path / "kept").exists()
