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


@pytest.mark.parametrize("has_links", [True, False])
def test_removed_outputs_come_back_with_their_times(outputs, tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    earlier = EarlierOutputs(tmp_path / "kept")
    earlier.keep(outputs)
    for file in outputs:
        file.unlink()
    outputs[0].parent.rmdir()
    assert earlier.put_back(outputs)
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]
    assert [file.stat().st_mtime for file in outputs] == [1e9, 1e9]


def test_outputs_of_one_job_come_back_together_or_not_at_all(outputs, tmp_path):
    earlier = EarlierOutputs(tmp_path / "kept")
    earlier.keep(outputs)
    for file in outputs:
        file.unlink()
        file.write_text("new")
    assert not earlier.put_back(outputs)
    assert [file.read_text() for file in outputs] == ["new", "new"]
    outputs[1].unlink()
    assert earlier.put_back(outputs)
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]


def keep_in_another_process(folder, outputs, then):
    """Starts a process that keeps these outputs, waits for a line, and then runs some code."""
    code = (
        "import sys; from pathlib import Path; "
        "from lethe.jobs.earlier_outputs import EarlierOutputs; "
        "earlier = EarlierOutputs(Path(sys.argv[1])); outputs = [*map(Path, sys.argv[2:])]; "
        f"earlier.keep(outputs); print(flush=True); sys.stdin.readline(); {then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder), *map(str, outputs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    return process


def test_what_a_killed_run_has_left_is_removed(outputs, tmp_path):
    killed = keep_in_another_process(tmp_path / "kept", outputs, "pass")
    killed.kill()
    killed.wait(60)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    earlier = EarlierOutputs(tmp_path / "kept")
    earlier.keep(outputs[:1])
    assert len(list((tmp_path / "kept").iterdir())) == 1, "only its own folder is left"
    earlier.clear()
    assert not (tmp_path / "kept").exists()
    assert all(file.exists() for file in outputs)


def test_two_runs_at_a_time_keep_their_own_outputs(outputs, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("of the other run")
    running = keep_in_another_process(tmp_path / "kept", [other], "earlier.put_back(outputs)")
    earlier = EarlierOutputs(tmp_path / "kept")
    earlier.keep(outputs)
    for file in (*outputs, other):
        file.unlink()
    assert earlier.put_back(outputs)
    earlier.clear()
    running.communicate("go on\n", timeout=60)
    assert running.returncode == 0
    assert [file.read_text() for file in outputs] == ["old train", "old eval"]
    assert other.read_text() == "of the other run"
