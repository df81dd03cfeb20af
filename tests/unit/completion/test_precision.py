import numpy as np
import pytest

from lethe.completion.precision import curve_of_table, precision_curve
from lethe.completion.probes import probes_needed
from lethe.config.task_table import Task
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix


def rows(tasks):
    rng = np.random.default_rng(0)
    factors = np.random.default_rng(1).normal(size=(2, 200))
    mean = np.random.default_rng(2).normal(0, 0.3, 200)
    return mean + rng.normal(size=(tasks, 2)) @ factors + 0.3 * rng.normal(size=(tasks, 200))


def test_precision_grows_with_probes_and_with_training_tasks():
    lines = precision_curve(rows(10), [3, 40], [2, 9], seeds=range(2))
    by_size = {(line["training_tasks"], line["k"]): line for line in lines}
    assert list(by_size) == [(2, 3), (2, 40), (9, 3), (9, 40)]
    assert by_size[9, 40]["top_10_percent"] > by_size[9, 3]["top_10_percent"]
    assert by_size[9, 40]["top_10_percent"] > by_size[2, 40]["top_10_percent"]
    assert by_size[9, 40]["task_mean_error"] < by_size[9, 3]["task_mean_error"]
    assert by_size[9, 40]["rmse"] < by_size[2, 40]["rmse"]
    assert by_size[9, 40]["top_10_percent"] > by_size[9, 40]["column_mean_top_10_percent"]


def test_the_curve_gives_the_probes_that_a_wanted_precision_needs():
    lines = precision_curve(rows(8), [3, 10, 40], seeds=range(2))
    misses = {line["k"]: 1 - line["top_10_percent"] for line in lines}
    needed = probes_needed(misses, 1 - lines[1]["top_10_percent"])
    assert 3 < needed <= 10


def test_unmeasured_cells_are_neither_probed_nor_scored():
    z = rows(6)
    z[np.random.default_rng(3).random(z.shape) < 0.2] = np.nan
    (line,) = precision_curve(z, [20], seeds=[0])
    assert all(np.isfinite(list(line.values())))


def test_too_few_rows_or_too_many_training_tasks_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        precision_curve(rows(2), [5])
    with pytest.raises(ValueError, match="each must be from 1 to 5"):
        precision_curve(rows(6), [5], [6])


def test_the_curve_of_a_table_uses_its_training_tasks():
    values = rows(6)
    names = [f"t{number}" for number in range(6)]
    table = {name: Task(name=name, group="a", split="train") for name in names}
    table["t5"] = Task(name="t5", group="a", split="test")
    z = Matrix(values=values, tasks=names, example_ids=[f"e{j}" for j in range(200)])
    lines = curve_of_table(z, table, [20], [2, 9])
    assert [line["training_tasks"] for line in lines] == [2, 4]
    assert lines == precision_curve(values[:5], [20], [2, 4])
    few = {name: table[name] for name in ("t0", "t1", "t5")}
    with pytest.raises(LetheError, match="has 2 training tasks"):
        curve_of_table(z, few, [20], [1])


def test_rows_with_fewer_than_two_measured_examples_are_left_out_of_the_curve():
    values = rows(6)
    values[0] = np.nan
    values[1, 1:] = np.nan
    names = [f"t{number}" for number in range(6)]
    table = {name: Task(name=name, group="a", split="train") for name in names}
    z = Matrix(values=values, tasks=names, example_ids=[f"e{j}" for j in range(200)])
    assert curve_of_table(z, table, [20], [2, 9]) == precision_curve(values[2:], [20], [2, 3])
    values[2:4] = np.nan
    with pytest.raises(LetheError, match="were measured for 2 training tasks only"):
        curve_of_table(z, table, [20], [1])
