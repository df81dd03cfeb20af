"""The script of docs/lab/across-models.md: rank by size, and Z as a prior."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix

ROOT = Path(__file__).parents[2]


@pytest.fixture
def across_models(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("across_models", ROOT / "docs/across_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up_models(ranks, tasks=16, examples=80):
    """Matrices of models whose Z has these ranks, up to noise."""
    rng = np.random.default_rng(0)
    names = [f"t{number}" for number in range(tasks)]
    ids = [str(number) for number in range(examples)]
    matrices = {}
    for model, rank in ranks.items():
        values = rng.normal(size=(tasks, rank)) @ rng.normal(size=(rank, examples))
        values += 0.05 * rng.normal(size=values.shape)
        matrices[model] = Matrix(values, names, ids)
    return matrices


def test_the_rank_by_size_is_that_of_the_matrices(across_models, capsys):
    matrices = made_up_models({"small": 2, "large": 6})
    sizes = {"small": 1_000_000, "large": 4_000_000}
    table = pd.DataFrame(across_models.rank_lines(matrices, sizes))
    lines = table.set_index(["statistic", "model"])
    assert lines.loc[("components", "small"), "value"] == 2
    assert lines.loc[("components", "large"), "value"] == 6
    for model, rank in (("small", 2), ("large", 6)):
        line = lines.loc[("effective_rank", model)]
        assert 0.6 * rank < line.value < 1.05 * rank and line.low < line.value < line.high
    ratio = lines.loc[("effective_rank", "large")]
    assert ratio.difference_low > 1
    explained = lines.loc[("left_out_r2_3", "large")]
    assert explained.difference_high < 0 and explained.high < 1
    assert lines.loc[("left_out_r2_3", "small"), "value"] > 0.98
    across_models.print_rank(table)
    printed = capsys.readouterr().out
    assert "| small (1.00M) | large (4.00M) |" in printed
    assert "| components above shuffled rows | 2 | 6 | - |" in printed


def test_models_are_compared_on_the_tasks_and_examples_that_all_of_them_have(across_models, capsys):
    matrices = made_up_models({"small": 2, "large": 3})
    large = matrices["large"]
    values = large.values[1:].copy()
    values[0, 4] = np.nan
    matrices["large"] = Matrix(values, large.tasks[1:], large.example_ids)
    shared = across_models.share_tasks(matrices)
    assert capsys.readouterr().out.startswith("1 of ")
    kept = [name for name in large.example_ids if name != large.example_ids[4]]
    for model in ("small", "large"):
        assert shared[model].tasks == large.tasks[1:]
        assert shared[model].example_ids == kept
        assert np.isfinite(shared[model].values).all()
    expected = np.delete(matrices["small"].values[1:], 4, axis=1)
    np.testing.assert_array_equal(shared["small"].values, expected)
    matrices["large"] = Matrix(values, large.tasks[1:], large.example_ids[::-1])
    with pytest.raises(ValueError, match="large was scored on other examples"):
        across_models.share_tasks(matrices)


def test_a_large_model_is_predicted_from_smaller_ones_only(across_models, monkeypatch, capsys):
    monkeypatch.setattr(across_models, "OWN_ROWS", (3,))
    monkeypatch.setattr(across_models, "PROBES", (0, 8))
    rng = np.random.default_rng(1)
    small = made_up_models({"small": 3})["small"]
    values = 0.5 * small.values + 0.05 * rng.normal(size=small.values.shape)
    large = Matrix(values, small.tasks, small.example_ids)
    tasks = {}
    for number, name in enumerate(small.tasks):
        tasks[name] = Task(name=name, group="g", split="test" if number % 3 == 2 else "train")
    matrices = {"large": large, "small": small}
    sizes = {"small": 1, "large": 4}
    table = pd.DataFrame(across_models.prior_lines(matrices, sizes, tasks))
    assert set(table.source) == {"small"} and set(table.target) == {"large"}
    lines = table.set_index(["probes", "method"])
    assert lines.loc[(8, "prior"), "rmse"] < 0.9 * lines.loc[(8, "own"), "rmse"]
    assert lines.loc[(8, "own"), "difference"] == 0
    across_models.print_prior(table)
    assert "| small, large | 3 | 8 |" in capsys.readouterr().out
