"""A cluster for each file of tests, so that its controller remembers their jobs only."""

import subprocess

import pytest
from helpers import slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running cluster; it is stopped even if a test fails."""
    if reason := slurm.why_unavailable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    folder.mkdir()
    started = slurm.Cluster(folder)
    try:
        try:
            started.start()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"SLURM does not start on this machine: {str(error)[-2000:]}")
        yield started
    finally:
        started.stop()
