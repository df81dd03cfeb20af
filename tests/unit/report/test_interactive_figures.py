import base64
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import findings as tiny_findings

from lethe.report.cell_predictions import PROBES, choose_random_probes, predict_cells
from lethe.report.heat_map_figure import (
    MISSING,
    encode_values,
    heat_map_data,
    make_heat_map,
    make_orders,
)
from lethe.report.interactive_figures import make_figures
from lethe.report.prediction_figures import (
    coverage_table,
    errors_by_domain,
    errors_by_task,
    make_prediction_figure,
    scores_over_seeds,
)
from lethe.report.replay_figures import make_replay_figure, summarise_runs, task_differences


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


def low_rank(tasks: int, examples: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(tasks, 2)) @ rng.normal(size=(2, examples))
    return (values + rng.normal(0, 0.05, values.shape)).astype(np.float32)


def decode(part: dict, columns: int) -> np.ndarray:
    codes = np.frombuffer(base64.b64decode(part["codes"]), "<i2").reshape(-1, columns)
    return np.where(codes == MISSING, np.nan, codes * part["scale"])


def test_values_keep_their_precision_and_missing_cells_stay_missing():
    values = np.array([[0.5, -0.123, np.nan], [0.0, 1e-4, 2.0]])
    np.testing.assert_allclose(decode(encode_values(values), 3), values, atol=2 / 32767)
    assert np.isnan(decode(encode_values(np.full((1, 2), np.nan)), 2)).all()
    assert (decode(encode_values(np.zeros((1, 2))), 2) == 0).all()


@pytest.mark.parametrize("tasks", [8, 40])
def test_a_task_is_predicted_without_its_hidden_cells(tasks):
    values = low_rank(tasks, 120)
    predicted = predict_cells(values)
    probes = choose_random_probes(values[0])
    hidden = np.setdiff1d(np.arange(120), probes)
    assert len(probes) == PROBES
    assert np.isnan(predicted[:, probes]).all()
    errors = predicted[:, hidden] - values[:, hidden]
    assert np.sqrt(np.mean(errors**2)) < 0.3 * values.std()
    changed = values.copy()
    changed[0, hidden] += 5
    np.testing.assert_array_equal(predict_cells(changed)[0], predicted[0])


def test_cells_without_any_value_have_no_prediction():
    values = low_rank(5, 40)
    values[:, 7] = np.nan
    values[2] = np.nan
    predicted = predict_cells(values)
    assert np.isnan(predicted[:, 7]).all()
    assert np.isnan(predicted[2]).all()
    assert np.isfinite(predicted[0]).sum() == 40 - 1 - 39 // 3
    assert np.isnan(predict_cells(values[:1])).all()


def test_orders_hold_every_task_and_example_once(findings):
    values = {model: z.values for model, z in findings.matrices.items()}
    domains = ["news", "code"] * 6
    rows, columns = make_orders(findings, values, domains)
    assert list(rows) == ["group", "mean", "component 1", "component 2", "component 3"]
    for order in rows.values():
        assert sorted(order) == sorted(tiny_findings.TASKS)
    for order in columns.values():
        assert sorted(order) == list(range(12))
    assert rows["group"] == ["007", "sums", "null", "poems"]
    assert [domains[position] for position in columns["domain"]] == ["code"] * 6 + ["news"] * 6
    stacked = np.concatenate(list(values.values()))
    means = np.nansum(stacked, axis=0) / np.maximum(1, np.isfinite(stacked).sum(axis=0))
    assert columns["mean"] == np.argsort(-means, kind="stable").tolist()


def test_the_heat_map_has_the_shown_examples_of_every_model(findings):
    shown = [0, 3, 5, 7]
    cells = {model: z.values[:, shown] for model, z in findings.matrices.items()}
    data = heat_map_data(findings, shown, measured=cells, predicted=cells)
    for model, z in findings.matrices.items():
        measured = decode(data["measured"][model], 4)
        np.testing.assert_allclose(measured, z.values[:, shown], atol=1e-4)
        assert decode(data["predicted"][model], 4).shape == (4, 4)
    assert data["splits"]["sums"] == "test"
    assert data["groups"]["poems"] == "words"
    assert data["limit"] == pytest.approx(0.4, abs=0.2)


def test_a_matrix_without_any_value_has_a_heat_map(findings):
    z = replace(tiny_findings.z(), values=np.full((4, 12), np.nan, np.float32))
    empty = replace(findings, matrices={"one": z})
    cells = {"one": z.values}
    data = heat_map_data(empty, list(range(12)), measured=cells, predicted=cells)
    assert data["limit"] > 0
    json.dumps(data, allow_nan=False)


def test_the_same_figure_has_the_same_json_and_no_javascript_of_its_own(findings):
    item = make_heat_map(findings)
    assert make_heat_map(findings) == item
    assert "CustomJS" not in json.dumps(item)


def test_names_cannot_end_the_element_that_holds_them(findings):
    name = "</script><script>alert(1)</script>"
    z = replace(tiny_findings.z(), tasks=[name, *list(tiny_findings.TASKS)[1:]])
    tasks = findings.tasks | {name: tiny_findings.TASKS["007"]}
    figures = make_figures(replace(findings, tasks=tasks, matrices={"one": z}), range(12), {})
    assert "<" not in figures.data
    assert name in json.loads(figures.data)["heat_map"]["groups"]


def test_scores_are_those_of_random_probes_over_all_seeds(findings):
    scores = scores_over_seeds(findings.completions["one"], "in_domain", "rmse")
    assert scores.k.tolist() == [1, 3, 1, 3]
    assert scores.value.tolist() == pytest.approx([0.2, 0.2 / 3] * 2)


def test_coverage_is_read_by_level_and_may_be_absent(findings):
    table = findings.completions["one"]
    assert coverage_table(table).empty
    line = {"split": "in_domain", "method": "gaussian", "k": 3, "probes": "random"}
    line |= {"seed": "all", "metric": "coverage_90", "value": 0.88, "low": 0.8, "high": 0.95}
    coverage = coverage_table(pd.concat([table, pd.DataFrame([line])]))
    assert coverage.level.tolist() == [0.9]
    assert coverage.value.tolist() == [0.88]


def test_the_domain_that_is_predicted_worst_comes_first():
    measured = np.array([[0.0, 0.0, 1.0, np.nan]])
    predicted = np.array([[0.1, np.nan, 0.5, 0.0]])
    table = errors_by_domain(measured, predicted, ["a", "a", "b", "b"])
    assert table.domain.tolist() == ["b", "a"]
    assert table.rmse.tolist() == pytest.approx([0.5, 0.1])
    assert table.mean_error.tolist() == pytest.approx([-0.5, 0.1])
    assert table.cells.tolist() == [1, 1]
    assert errors_by_domain(measured, np.full((1, 4), np.nan), ["a", "a", "b", "b"]).empty


def test_a_task_has_its_means_its_overlap_and_the_example_that_was_missed():
    measured = np.array([[0.1, 0.9, 0.2, 0.3, np.nan], [1.0, np.nan, np.nan, np.nan, 0.2]])
    predicted = np.array([[0.1, 0.4, np.nan, 0.5, 0.1], [0.5, 0.1, 0.2, np.nan, np.nan]])
    # The second task has one predicted cell only.
    [line] = errors_by_task(measured, predicted, ["sums", "poems"], list("abcde"))
    assert line["task"] == "sums"
    assert line["mean"] == pytest.approx(1.3 / 3)
    assert line["predicted_mean"] == pytest.approx(1.0 / 3)
    assert line["rmse"] == pytest.approx(np.sqrt((0.25 + 0.04) / 3))
    # The most forgotten tenth of three examples is b, and the predicted one d.
    assert line["top_10_percent"] == 0
    missed = (line["missed"], line["missed_measured"], line["missed_predicted"])
    assert missed == ("b", 0.9, 0.4)


def test_prediction_figures_are_drawn_from_whatever_scores_there_are(findings):
    cells = low_rank(4, 12)
    for scores in (findings.completions["one"], findings.completions["one"].iloc[:0]):
        item = make_prediction_figure(
            scores, "nats", measured=cells, predicted=cells, domains=["a", "<b>"] * 6
        )
        assert "Which domains are predicted worst?" in json.dumps(item)


def test_runs_are_summarised_over_tasks_with_their_most_frequent_worst_domain(findings):
    runs = findings.runs["one"]
    runs = runs.assign(worst_domain=["code", "code"] + ["news", "code"] * 3)
    table = summarise_runs(runs).set_index("strategy")
    assert table.loc["mf", "heldout_forgetting"] == pytest.approx(0.1)
    assert table.loc["mf", "tasks"] == 2
    assert table.loc["none", "worst_domain"] == "code"
    assert "worst_domain_forgetting" not in table
    # A run without a draw has no value there, so the column holds objects.
    drawn = runs.strategy.map({"none": None, "random": True, "mf": False, "oracle": False})
    table = summarise_runs(runs.assign(random_in_effect=drawn)).set_index("strategy")
    assert np.isnan(table.loc["none", "random_in_effect"])
    assert table.loc[["random", "mf"], "random_in_effect"].tolist() == [1.0, 0.0]


def test_differences_are_paired_by_task(findings):
    runs = findings.runs["one"].copy()
    runs.loc[(runs.strategy == "mf") & (runs.task == "poems"), "heldout_forgetting"] = 0.5
    table = task_differences(runs).set_index(["strategy", "task"])
    assert set(table.index.get_level_values("strategy")) == {"mf", "oracle"}
    assert table.loc[("mf", "poems"), "heldout_forgetting"] == pytest.approx(0.3)
    assert table.loc[("mf", "sums"), "heldout_forgetting"] == pytest.approx(-0.1)
    assert task_differences(runs[runs.strategy != "random"]).empty


def test_replay_is_drawn_with_frontiers_and_without_random_replay(findings):
    runs = findings.runs["one"]
    item = make_replay_figure(runs, "nats", {"text": ["none", "random", "mf"]})
    assert "difference to random replay" in json.dumps(item)
    item = make_replay_figure(runs[runs.strategy == "mf"], "nats", {})
    assert "difference to random replay" not in json.dumps(item)
