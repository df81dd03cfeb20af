"""The experiment that a predictor is learned from."""

import pytest

from lethe.config import Experiment
from lethe.config.task_table import Task, read_task_table
from lethe.cost.learning_plan import (
    LearningCost,
    LearningSettings,
    learning_experiment,
    select_tasks,
    write_task_table,
)
from lethe.errors import LetheError

TABLE = [
    Task(name=f"{group}{number}", group=group, split="train", source=f"local:{group}{number}")
    for group in "abc"
    for number in range(3)
]


def test_tasks_are_selected_from_all_groups_in_turn(tmp_path):
    selected = select_tasks(TABLE, 4, tmp_path / "tasks.csv")
    assert [task.name for task in selected] == ["a0", "b0", "c0", "a1"]
    write_task_table(tmp_path / "few.csv", selected)
    tasks, problems = read_task_table(tmp_path / "few.csv")
    assert not problems
    assert [task.split for task in tasks.values()] == ["train"] * 3 + ["test"]


@pytest.mark.parametrize("count", [2, 10])
def test_too_few_and_too_many_tasks_are_refused(tmp_path, count):
    with pytest.raises(LetheError, match="give --tasks from 3 to 9"):
        select_tasks(TABLE, count, tmp_path / "tasks.csv")


def experiment_of(folder, **settings) -> Experiment:
    content = learning_experiment(
        "learn-p",
        model={"source": "hub", "path": "a/b"},
        pool=folder / "pool.parquet",
        table=folder / "tasks.csv",
        sources={"bigbench": {"kind": "bigbench"}},
        settings=LearningSettings(**settings),
    )
    return Experiment.model_validate(content)


@pytest.mark.parametrize(("method", "rate"), [("full", 1e-4), ("lora", 1e-3)])
def test_the_experiment_is_valid_and_trains_by_the_method(tmp_path, method, rate):
    experiment = experiment_of(tmp_path, method=method)
    assert experiment.recipe.lr == rate
    assert (experiment.recipe.lora is not None) == (method == "lora")
    assert experiment.upstream.pool == str(tmp_path / "pool.parquet")
    assert experiment.replay is None


@pytest.mark.parametrize(
    ("dtype", "training", "scoring"),
    [("float32", "float32", "float32"), ("autocast", "bfloat16", "autocast")],
)
def test_training_and_scoring_compute_in_the_same_type(tmp_path, dtype, training, scoring):
    experiment = experiment_of(tmp_path, dtype=dtype)
    assert experiment.recipe.dtype == training
    assert experiment.scoring.dtype == scoring


def test_the_cost_is_that_of_the_rules_a_predictor_needs(tmp_path):
    lines = ["rule,jobs,seconds", "score_base,1,60", "measure_row,8,480", "replay_run,9,999"]
    (tmp_path / "plan.csv").write_text("\n".join([*lines, "all,18,1539"]))
    cost = LearningCost.read(tmp_path / "plan.csv")
    assert (cost.fine_tunes, cost.seconds) == (8, 540)
    assert "about 9 minutes" in cost.sentence()
    assert "about 3.0 hours" in LearningCost(8, 10800).sentence()
