"""Random kills: a run that is only started again ends with the same losses.

LETHE_SOAK_KILLS sets the number of kills; `python tests/helpers/soak.py 30` is the long form.
"""

import os
import sys

import pytest
from helpers.soak import soak


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_run_that_is_killed_at_random_ends_with_equal_losses(tmp_path):
    kills = int(os.environ.get("LETHE_SOAK_KILLS", "3"))
    killed = soak(tmp_path, kills=kills, seed=kills)
    assert sum(killed.kills.values()) == kills
    assert killed.manual_steps <= 1
