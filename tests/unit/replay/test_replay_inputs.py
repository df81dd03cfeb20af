"""What strategies choose by is read from the files that the rule names."""

import numpy as np
import pytest

from lethe.config.replay_settings import Replay
from lethe.matrix.forgetting_matrix import Matrix, write_matrix
from lethe.replay.replay_inputs import read_replay

NO_FILES = {"scores": "", "training_rows": "", "gradients": ""}


@pytest.mark.parametrize("strategy", ["gradient", "gradient_matching"])
def test_gradients_are_read_for_the_task_and_for_all_tasks(tmp_path, strategy):
    values = np.array([[1.0, -2.0], [3.0, 4.0]], dtype=np.float32)
    write_matrix(tmp_path / "gradient.parquet", Matrix(values, ["sums", "poems"], ["a", "b"]))
    settings = Replay(strategies=["random", strategy]).resolve(strategy).parameters()
    files = NO_FILES | {"gradients": str(tmp_path / "gradient.parquet")}
    run, inputs = read_replay(strategy, settings, files, "poems")
    assert run.strategy == strategy
    assert inputs.gradient_products == {"a": 3.0, "b": 4.0}
    assert inputs.gradient_profiles["a"].tolist() == [1.0, 3.0]
    assert inputs.gradient_profiles["b"].tolist() == [-2.0, 4.0]


def test_a_strategy_that_reads_no_file_has_no_inputs():
    settings = Replay(strategies=["random"]).resolve("random").parameters()
    _, inputs = read_replay("random", settings, NO_FILES, "poems")
    assert (inputs.forgetting, inputs.gradient_products, inputs.gradient_profiles) == (None,) * 3
