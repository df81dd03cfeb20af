"""The tiny experiment, made once, and copies of it to change."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from helpers.experiment import Workspace, make_experiment


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Gives the tests of this folder without a group one.

    pytest-xdist starts the largest groups first and single tests in their order. These tests are
    slow and would come last, when the other worker has nothing to do any more.
    """
    for item in items:
        in_this_folder = item.path.parent == Path(__file__).parent
        if in_this_folder and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("other workflow"))


@pytest.fixture(scope="module", autouse=True)
def shared_imports() -> Iterator[None]:
    """The runs of all these tests share one process that imports torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LETHE_WARM", str(os.getpid()))
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Workspace:
    """The tiny experiment from raw text to report; tests leave it as it is.

    The modules that use it are one group of pytest-xdist, so that it is made once. All others are
    one more group. A third would wait behind the first, because a worker takes two groups at a
    time.
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
