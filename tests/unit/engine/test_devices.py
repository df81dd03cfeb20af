import os
import subprocess
import sys
from pathlib import Path

import pytest

from lethe.engine import devices

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
