"""Earlier outputs come back with their content and time, unless all of them were made again."""

import errno
import os

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


def test_what_a_killed_run_has_left_is_removed(outputs, tmp_path):
    EarlierOutputs(tmp_path / "kept").keep(outputs)
    earlier = EarlierOutputs(tmp_path / "kept")
    earlier.keep(outputs[:1])
    assert len(list((tmp_path / "kept").iterdir())) == 1
    earlier.clear()
    assert not (tmp_path / "kept").exists()
    assert all(file.exists() for file in outputs)
