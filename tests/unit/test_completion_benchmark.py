"""Ratios and resumed peers of benchmarks/completion.py."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "completion", raising=False)
    yield importlib.import_module("completion")
    sys.modules.pop("completion", None)


def test_a_ratio_is_that_of_roots_and_its_error_that_of_leaving_tasks_out(benchmark):
    errors = np.array([1.0, 4.0, 9.0])
    ratio, error = benchmark.ratio_over_tasks(errors, 4 * errors)
    assert ratio == pytest.approx(0.5)
    assert error == pytest.approx(0, abs=1e-12)
    base = np.array([2.0, 2.0, 2.0])
    without = np.sqrt([13 / 4, 10 / 4, 5 / 4])
    expected = np.sqrt(2 / 3 * np.square(without - without.mean()).sum())
    assert benchmark.ratio_over_tasks(errors, base)[1] == pytest.approx(expected)


def test_errors_of_peers_are_measured_once(benchmark, tmp_path):
    path = tmp_path / "folder/peers.json"
    calls = []

    def fit():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(len(calls))

    with pytest.raises(KeyboardInterrupt):
        benchmark.PeerErrors.load(path).measure("a", [fit] * 4)
    assert json.loads(path.read_text("utf-8")) == {"a": [1.0, 2.0]}
    errors = benchmark.PeerErrors.load(path).measure("a", [fit] * 4)
    np.testing.assert_array_equal(errors, [1.0, 2.0, 4.0, 5.0])


def test_every_design_has_an_error_per_seed_and_task(benchmark):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 60)) + rng.normal(size=(12, 60))
    errors = benchmark.design_errors(rows[:10], rows[10:], rows[:10], rows[10:], 4, range(2))
    assert list(errors) == ["random", "random+sibling", "a_optimal", "a_optimal+sibling"]
    assert {values.shape for values in errors.values()} == {(2, 2)}
    # The sibling is the model itself here.
    assert errors["random+sibling"].mean() < 0.2 * errors["random"].mean()


def test_coverage_is_scored_per_task_for_cells_and_means(benchmark):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(14, 3)) @ rng.normal(size=(3, 90)) + rng.normal(size=(14, 90))
    split = benchmark.Split("out_of_domain", np.arange(12), np.array([12, 13]), group="g")
    domains = ["a"] * 30 + ["b"] * 60
    scores = benchmark.coverage_of_split(rows, domains, split, k=20, draws=4)
    kinds = ["cells", "domain means", "task mean"]
    assert sorted(scores) == sorted(kinds + [f"{kind} width" for kind in kinds])
    for kind in kinds:
        assert scores[kind].shape == (2,)
        assert ((scores[kind] >= 0) & (scores[kind] <= 1)).all()
        assert (scores[f"{kind} width"] > 0).all()
    # Independent noise averages out, so a mean needs a narrower interval than a cell.
    assert (scores["task mean width"] < scores["cells width"]).all()
    assert scores["cells"].mean() > 0.7


def test_the_first_interval_is_timed_beside_its_limit(benchmark, capsys):
    line = benchmark.time_first_interval(300)
    assert line["examples"] == 300
    assert line["cpu_seconds"] > 0
    assert line["limit"] is None
    assert benchmark.SECONDS_LIMITS == {10_000: 0.3, 141_871: 0.8}
    assert "84 x 300, k=30" in capsys.readouterr().out
