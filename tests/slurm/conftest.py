"""A cluster for each file of tests: what its controller remembers is theirs alone."""

import subprocess

import pytest
from helpers import slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running cluster; taken down whatever happens."""
    if reason := slurm.lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    folder.mkdir()
    made = slurm.Cluster(folder)
    try:
        try:
            made.start()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"SLURM does not start on this machine: {str(error)[-2000:]}")
        yield made
    finally:
        made.stop()
