"""The tiny experiment, made once, and copies of it to change."""

import shutil

import pytest
from helpers.experiment import Workspace, make_experiment


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """The tiny experiment from raw text to report; tests leave it as it is.

    The modules that use it are one group of pytest-xdist, so that it is made once. Those that make
    another experiment are one more group. A third would wait behind the first, because a worker
    takes two groups at a time.
    """
    folder = tmp_path_factory.mktemp("tiny") / "workspace"
    make_experiment(folder)
    workspace = Workspace(folder)
    workspace.run()
    return workspace


@pytest.fixture
def copied(finished, tmp_path) -> Workspace:
    """A copy of the finished experiment, with its times, to change."""
    shutil.copytree(finished.folder, tmp_path / "workspace", symlinks=True)
    return Workspace(tmp_path / "workspace")
