"""The tiny experiment, made once, and copies of it to do things to."""

import shutil

import pytest
from helpers.experiment import Place, make_experiment


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Place:
    """The tiny experiment from raw text to report; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("tiny") / "place"
    make_experiment(folder)
    place = Place(folder)
    place.run()
    return place


@pytest.fixture
def copied(finished, tmp_path) -> Place:
    """A copy of the finished experiment, with its times, to do things to."""
    shutil.copytree(finished.folder, tmp_path / "place", symlinks=True)
    return Place(tmp_path / "place")
