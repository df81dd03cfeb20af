import os
import subprocess
import sys
from pathlib import Path

import pytest

from lethe.engine import devices
from lethe.errors import LetheError

HOLDER = """
import sys, time
from pathlib import Path
from lethe.engine.devices import free
print(",".join(free(["0", "1", "2"], int(sys.argv[2]), Path(sys.argv[1]))), flush=True)
time.sleep(60)
"""


def holder(folder, count):
    """Another process that takes GPUs and keeps them."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(count)],
        **{"stdout": subprocess.PIPE, "text": True},
        env=os.environ | {"PYTHONPATH": str(Path(devices.__file__).parents[2])},
    )
    return process, process.stdout.readline().strip().split(",")


def test_two_jobs_never_share_a_gpu_and_a_killed_one_gives_it_back(tmp_path):
    first, taken = holder(tmp_path, 1)
    second, others = holder(tmp_path, 2)
    try:
        assert taken == ["0"] and others == ["1", "2"]
        first.kill()
        first.wait()
        assert devices.free(["0", "1", "2"], 1, tmp_path, pause=0.05) == ["0"]
    finally:
        first.kill()
        second.kill()


def test_gpus_are_those_that_the_environment_names():
    nodes = [Path("/dev/nvidia0"), Path("/dev/nvidia1")]
    assert devices.visible({}, nodes) == ["0", "1"]
    assert devices.visible({"CUDA_VISIBLE_DEVICES": "3, 5"}, nodes) == ["3", "5"]
    assert devices.visible({"CUDA_VISIBLE_DEVICES": ""}, nodes) == []


@pytest.mark.parametrize("gpus", [0, 1])
def test_under_slurm_the_schedulers_choice_stands(monkeypatch, gpus):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    devices.claim(gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_job_without_gpus_sees_none(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    devices.claim(0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_container_with_one_node_of_many_has_the_first_gpu():
    """CUDA counts the GPUs that it sees; the number of a node is the host's."""
    assert devices.visible({}, [Path("/dev/nvidia3")]) == ["0"]


@pytest.fixture
def allocation(tmp_path, monkeypatch):
    """A job of SLURM with three GPUs; the folder of its locks."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    yield tmp_path / f"lethe-{os.getuid()}-slurm-7"
    for lock in devices._held:
        lock.release()


def test_jobs_in_one_allocation_take_different_gpus(allocation):
    allocation.mkdir(mode=0o700)
    other, taken = holder(allocation, 1)
    try:
        devices.claim(1)
    finally:
        other.kill()
    assert taken == ["0"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_the_locks_of_an_allocation_are_the_users_own(allocation, tmp_path, monkeypatch):
    devices.claim(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert allocation.stat().st_mode & 0o777 == 0o700
    # What was taken is enough, so a second call takes nothing.
    devices.claim(2)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    (tmp_path / f"lethe-{os.getuid()}-slurm-8").symlink_to(tmp_path)
    with pytest.raises(LetheError, match="slurm-8: belongs to another user or is a link"):
        devices.claim(1)


@pytest.mark.parametrize("gpus", [0, 3, 4])
def test_a_job_that_shares_no_gpu_of_its_allocation_locks_nothing(allocation, gpus):
    devices.claim(gpus)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"
    assert not allocation.exists()
