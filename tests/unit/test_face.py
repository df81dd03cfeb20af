import subprocess
import sys
from pathlib import Path

import pytest

import lethe


@pytest.mark.parametrize("name", sorted(set(lethe.__all__) - {"__version__"}))
def test_every_name_of_the_face_is_there(name):
    assert getattr(lethe, name) is not None


def test_a_name_that_is_not_there_lists_those_that_are():
    with pytest.raises(AttributeError, match=r"no 'Gausian'; it has: .*Gaussian"):
        _ = lethe.Gausian


def test_a_misspelt_method_lists_the_names():
    with pytest.raises(KeyError, match="no completion method 'gausian'; known: .*gaussian"):
        lethe.METHODS["gausian"]


@pytest.mark.parametrize("wing", ["lethe", "lethe.completion", "lethe.analysis.low_rank"])
def test_prediction_and_analysis_load_no_torch(wing):
    check = f"import sys, {wing}; sys.exit('torch' in sys.modules)"
    library = str(Path(lethe.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", check], env={"PYTHONPATH": library}, check=False, timeout=120
    )
    assert done.returncode == 0
