from dataclasses import replace

import numpy as np
import pytest

from lethe.config.sequence_settings import Sequences
from lethe.errors import RowError
from lethe.matrix import rows
from lethe.matrix.sequence_rows import read_multitask, read_sequences

SETTINGS = Sequences(orders={"o": ["x", "y"]}, seeds=[3])


def row(**about):
    losses = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    return rows.Row(
        example_ids=["a", "b", "c"],
        loss_before=losses,
        loss_after=losses + np.float32(0.5),
        n_tokens=np.array([4, 4, 4]),
        settings={},
        about=about,
    )


def step(number, task, **losses):
    own = {"eval_loss_before": 2.0, "eval_loss_after": losses[task], "replayed": 0}
    labels = {"order": "o", "run": "none", "seed": 3, "step": number, "task": task}
    return row(**own, **labels, task_losses=losses)


SINGLE = {
    "x": row(eval_loss_before=4.0, eval_loss_after=1.0),
    "y": row(eval_loss_before=5.0, eval_loss_after=2.0),
}


@pytest.fixture
def files(tmp_path):
    steps = {"step1-x": step(1, "x", x=1.0), "step2-y": step(2, "y", x=1.5, y=0.5)}
    for name, measured in steps.items():
        rows.write_row(tmp_path / f"{name}.parquet", measured)
    return [tmp_path / f"{name}.parquet" for name in steps]


def test_a_sequence_is_a_matrix_of_its_steps_with_scores_that_grow_when_better(files):
    (sequence,) = read_sequences(files, SETTINGS, SINGLE)
    assert (sequence.order, sequence.run, sequence.seed) == ("o", "none", 3)
    assert sequence.forgetting.shape == (2, 3) and (sequence.forgetting == 0.5).all()
    scores = sequence.scores["nats"]
    np.testing.assert_array_equal(scores.after, [[-1.0, np.nan], [-1.5, -0.5]])
    assert scores.base.tolist() == [-4.0, -5.0]
    assert scores.single.tolist() == [-1.0, -2.0]
    assert scores.before.tolist() == [-2.0, -2.0]


def test_every_row_of_another_step_is_named(files):
    rows.write_row(files[1], step(1, "y", x=1.0, y=1.0))
    files[0].write_bytes(b"no row")
    with pytest.raises(RowError) as error:
        read_sequences(files, SETTINGS, SINGLE)
    message = str(error.value)
    assert "2 problem(s)" in message and "step1-x.parquet: not a readable row" in message
    assert "step2-y.parquet: was measured for step 1, expected 2" in message


def test_a_step_on_other_examples_than_the_single_row_is_named(files):
    other = replace(SINGLE["y"], example_ids=["a", "c", "b"])
    with pytest.raises(RowError, match="step2-y.parquet: its 3 examples are not the 3 of the task"):
        read_sequences(files, SETTINGS, {**SINGLE, "y": other})


def test_a_mixture_has_scores_by_task(tmp_path):
    about = {"order": "o", "seed": 0, "task_losses": {"x": 1.0, "y": 2.0}}
    mixed = row(**about, task_exact_match={"x": 0.5})
    path = tmp_path / "o" / "multitask-seed0.parquet"
    path.parent.mkdir()
    rows.write_row(path, mixed)
    (read,) = read_multitask([path])
    assert read.scores == {"nats": {"x": -1.0, "y": -2.0}, "exact_match": {"x": 0.5}}
    renamed = path.with_name("multitask-seed1.parquet")
    rows.write_row(renamed, mixed)
    with pytest.raises(RowError, match="was measured for order 'o' and seed 0"):
        read_multitask([renamed])
    rows.write_row(path, replace(mixed, about={}))
    with pytest.raises(RowError, match="multitask-seed0.parquet: is not a fine-tune on all tasks"):
        read_multitask([path])


def test_every_mixture_that_is_foreign_or_broken_is_named(tmp_path):
    paths = [tmp_path / "o" / f"multitask-seed{seed}.parquet" for seed in range(3)]
    paths[0].parent.mkdir()
    rows.write_row(paths[0], row(order="o", seed=1, task_losses={"x": 1.0}))
    paths[1].write_bytes(b"no row")
    with pytest.raises(RowError) as error:
        read_multitask(paths)
    message = str(error.value)
    assert "3 problem(s) with 3 fine-tunes" in message
    assert "multitask-seed0.parquet: was measured for order 'o' and seed 1" in message
    assert "multitask-seed1.parquet: not a readable row" in message
    assert "multitask-seed2.parquet: not a readable row (there is no such file)" in message
