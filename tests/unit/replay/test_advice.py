"""Advice for a task rests on the replay runs of other tasks, and its score on its own."""

import numpy as np
import pandas as pd
import pytest

import lethe
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix
from lethe.replay.advice import Advice, advise, advise_every_task, mean_by_row, score_advice

# Mean forgetting without replay; half of the tasks harm little, half of them much.
TASKS = {f"t{i}": 0.1 + 0.05 * i for i in range(12)}


def records_of(forgetting=TASKS, noise=0.0, seed=0):
    """`light` learns most. `heavy` forgets nothing and learns less, by the same amount everywhere.

    At a trade of 1 the cost of `light` is the task's forgetting / 2, and that of `heavy` is 0.2:
    heavy replay pays from a mean forgetting of 0.4.
    """
    rng = np.random.default_rng(seed)
    records = []
    for task, harm in forgetting.items():
        level = rng.normal(3, 1)
        for run, (loss, kept) in {
            "random": (0.1, 0.3 * harm),
            "light": (0.0, harm / 2 + 0.1),
            "heavy": (0.3, 0.0),
        }.items():
            records.append(
                {
                    "strategy": run,
                    "task": task,
                    "seed": 0,
                    "heldout_forgetting": kept + noise * rng.normal(),
                    "eval_loss_after": level + loss + noise * rng.normal(),
                }
            )
    return records


def advised(predicted, runs=None, trade=1.0, forgetting=TASKS, **changes):
    records = records_of(forgetting) if runs is None else runs
    return advise(records, forgetting, predicted=predicted, trade=trade, **changes)


def test_the_planted_best_run_is_advised_on_either_side_of_the_crossing():
    candidates = ["light", "heavy"]
    assert advised(0.3, candidates=candidates)[0].run == "light"
    assert advised(0.5, candidates=candidates)[0].run == "heavy"
    best = advised(0.5, candidates=candidates)[0]
    assert best.expected_forgetting == pytest.approx(0, abs=1e-9)
    assert best.expected_eval_loss_difference == pytest.approx(0.2)
    assert best.expected_cost == pytest.approx(0.2)
    assert best.forgetting_error == pytest.approx(0, abs=1e-9)


def test_a_higher_trade_takes_the_run_that_keeps_more():
    names = [advised(0.3, trade=trade)[0].run for trade in (0.1, 10.0)]
    assert names == ["light", "heavy"]
    ranked = advised(0.3, trade=2.0)
    assert [one.expected_cost for one in ranked] == sorted(one.expected_cost for one in ranked)
    for one in ranked:
        cost = one.expected_eval_loss_difference + 2 * one.expected_forgetting
        assert one.expected_cost == pytest.approx(cost)


def test_nothing_is_extrapolated_beyond_the_tasks_that_were_measured():
    assert advised(50.0) == advised(max(TASKS.values()))
    assert advised(-1.0) == advised(min(TASKS.values()))


def test_a_slope_that_is_mere_noise_shrinks_to_the_mean():
    rng = np.random.default_rng(1)
    runs = records_of()
    for record in runs:
        record["heldout_forgetting"] = 0.2 + 0.01 * rng.normal()
    low, high = (advised(value, runs)[0] for value in (0.1, 0.6))
    means = [r["heldout_forgetting"] for r in runs if r["strategy"] == low.run]
    assert low.run == high.run == "light"
    assert low.expected_forgetting == pytest.approx(np.mean(means), abs=1e-3)
    assert high.expected_forgetting == pytest.approx(np.mean(means), abs=1e-3)
    assert 0.005 < low.forgetting_error < 0.02


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_errors_are_those_of_lines_that_are_fitted_without_the_task(noise):
    """The closed form of leave-one-out, against fits without each task."""
    runs = records_of(noise=noise)
    harm = np.array(list(TASKS.values()))
    values = np.array([r["heldout_forgetting"] for r in runs if r["strategy"] == "light"])
    centred = harm - harm.mean()
    errors = {}
    for share in (0.25, 0.5, 0.75, 1.0):
        penalty = np.diag([0, centred @ centred * (1 / share - 1)])
        residuals = []
        for left_out in range(len(harm)):
            others = np.arange(len(harm)) != left_out
            design = np.stack([np.ones(len(harm)), harm], axis=1)
            inner = design[others].T @ design[others] + penalty
            line = np.linalg.solve(inner, design[others].T @ values[others])
            residuals.append(values[left_out] - design[left_out] @ line)
        errors[share] = np.sqrt(np.mean(np.square(residuals)))
    light = next(one for one in advised(0.3, runs) if one.run == "light")
    assert light.forgetting_error == pytest.approx(errors[1.0], abs=1e-9)
    assert errors[1.0] == min(errors.values())


def test_seeds_are_averaged():
    runs = records_of()
    again = [dict(run, seed=1, heldout_forgetting=0.0) for run in runs]
    one = {advice.run: advice for advice in advised(0.3, runs)}
    two = {advice.run: advice for advice in advised(0.3, runs + again)}
    half = one["light"].expected_forgetting / 2
    assert two["light"].expected_forgetting == pytest.approx(half)


def every_task(runs, forgetting=TASKS, predicted=None, trades=(1.0,), **changes):
    changes = {"candidates": ["light", "heavy"], "primary": "light"} | changes
    predicted = predicted or forgetting
    return advise_every_task(runs, forgetting, predicted=predicted, trades=trades, **changes)


def test_neither_the_runs_nor_the_row_of_a_task_enter_its_own_advice():
    runs = records_of(noise=0.02)
    changed_runs = []
    for run in runs:
        spoiled = {"heldout_forgetting": 9.0, "eval_loss_after": -9.0}
        changed_runs.append(run | spoiled if run["task"] == "t3" else run)
    changed = TASKS | {"t3": 7.0}
    first = every_task(runs)[3]
    second = every_task(changed_runs, changed, predicted=TASKS)[3]
    assert first["task"] == second["task"] == "t3"
    own = ("mean_forgetting", "cost", "best_run", "best_cost", "average_cost", "primary_cost")
    for key in first.keys() - set(own):
        assert first[key] == second[key], key
    assert first["cost"] != second["cost"]


def test_advice_beats_one_run_for_all_tasks_where_the_best_run_depends_on_the_task():
    lines = every_task(records_of(noise=0.005), trades=[1.0, 20.0])
    score = {(line["trade"], line["reference"]): line for line in score_advice(lines)}
    hindsight = score[1.0, "best in hindsight"]
    assert 0 <= hindsight["difference"] < 0.01
    assert np.isnan(hindsight["p"])
    assert hindsight["same_run"] >= 10
    primary = score[1.0, "primary run"]
    assert primary["low"] < primary["difference"] < primary["high"] < 0
    # Of the six tasks at or above the crossing, five gain. At it, both runs cost the same.
    assert primary["tasks_lower"] >= 5 and primary["same_run"] >= 6
    assert primary["difference"] == pytest.approx(primary["cost"] - primary["reference_cost"])
    assert score[1.0, "best on average"]["difference"] < 0
    # At a trade that only heavy replay serves, the advice is the best run on average.
    assert score[20.0, "best on average"]["same_run"] == len(TASKS)
    assert score[20.0, "best on average"]["difference"] == 0


def test_a_negative_result_is_shown_as_one():
    """The run that suits a task has nothing to do with its forgetting, and is found by nobody."""
    rng = np.random.default_rng(0)
    runs = records_of()
    for record in runs:
        if record["strategy"] != "random":
            record["heldout_forgetting"] = 0.3 + 0.1 * rng.normal()
            record["eval_loss_after"] = 3.0
    (average,) = [
        line for line in score_advice(every_task(runs)) if line["reference"] == "best on average"
    ]
    assert average["low"] <= 0 <= average["high"]


def test_the_score_is_of_measured_costs_and_leaves_out_tasks_without_one():
    runs = records_of()
    lines = every_task(runs, primary=None)
    assert {line["reference"] for line in score_advice(lines)} == {
        "best in hindsight",
        "best on average",
    }
    line = lines[0]
    record = next(r for r in runs if r["task"] == "t0" and r["strategy"] == line["run"])
    reference = next(r for r in runs if r["task"] == "t0" and r["strategy"] == "random")
    difference = record["eval_loss_after"] - reference["eval_loss_after"]
    assert line["cost"] == pytest.approx(difference + record["heldout_forgetting"])
    lines[0]["cost"] = float("nan")
    assert {line["tasks"] for line in score_advice(lines)} == {len(TASKS) - 1}


def test_a_run_that_other_tasks_lack_is_not_advised():
    runs = [run for run in records_of() if run["strategy"] != "heavy" or run["task"] != "t5"]
    assert {advice.run for advice in advised(0.6, runs)} == {"random", "light"}


def without(strategy):
    return [run for run in records_of() if run["strategy"] != strategy]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trade": 0.0}, "trade must be a finite number above 0"),
        ({"predicted": float("nan")}, "predict the task again"),
        ({"runs": records_of(dict(list(TASKS.items())[:3]))}, "3 other task.*at least 4"),
        ({"runs": without("random")}, "no run 'random'"),
        ({"candidates": ["light", "strong"]}, "no run 'strong'; runs: random, light, heavy"),
        ({"candidates": ["light"]}, "1 of the candidate runs.*a choice needs two"),
        ({"forgetting": dict(list(TASKS.items())[1:])}, "known of task 't0'"),
    ],
)
def test_advice_that_would_rest_on_too_little_is_refused(changes, message):
    request = {"predicted": 0.3, "runs": records_of()} | changes
    with pytest.raises(LetheError, match=message):
        advised(**request)


def test_a_primary_run_that_does_not_exist_is_refused():
    with pytest.raises(LetheError, match="no run 'gaussian' to compare with"):
        every_task(records_of(), primary="gaussian")


def test_a_notebook_reads_the_tables_and_gets_advice():
    frame = pd.DataFrame(records_of())
    advice = lethe.advise(frame.to_dict("records"), TASKS, predicted=0.5, trade=1.0)
    assert isinstance(advice[0], Advice)
    assert advice[0].run in {"random", "heavy"}


def test_mean_forgetting_is_over_the_examples_that_are_asked_for():
    matrix = Matrix(np.array([[1.0, np.nan, 3.0], [4.0, 5.0, 6.0]]), ["a", "b"], ["x", "y", "z"])
    assert mean_by_row(matrix, ["x", "y"]) == {"a": 1.0, "b": 4.5}
    assert np.isnan(mean_by_row(matrix, ["y"])["a"])
    with pytest.raises(LetheError, match="no column of the example 'w'"):
        mean_by_row(matrix, ["w"])
