"""Costs are counts times rates: small numbers, checked by hand."""

import numpy as np
import pytest
from helpers import tiny

from lethe import tables
from lethe.config.analysis_settings import NoiseSettings
from lethe.config.model_settings import ExactMatch, Pretraining, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.config.sequence_settings import Sequences
from lethe.config.task_table import Task
from lethe.cost import ledger, plan
from lethe.cost.calibration import Sample, calibrate_model
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import models
from lethe.errors import LetheError
from lethe.matrix import rows

TASKS = {
    "a": Task(name="a", group="g", split="train"),
    "b": Task(name="b", group="g", split="train"),
    "c": Task(name="c", group="h", split="test"),
}
RECIPE = Recipe(steps=10, batch=4, max_epochs=2)
CALIBRATION = {
    "device": "cpu",
    "parameters": 1000,
    "weight_bytes": 4000,
    "load_seconds": 3.0,
    "loads": 1,
    "upstream_tokens": 50.0,
    "row_bytes": 20.0,
    "scoring_tokens_per_second": 100.0,
    "training_tokens_per_second": 10.0,
    "answer_seconds": None,
    "peak_memory_mb": 7.0,
    "tasks": {
        "a": {"examples": 100, "tokens": 20.0, "eval_tokens": 30.0, "eval_examples": 2},
        "b": {"examples": 100, "tokens": 20.0, "eval_tokens": 30.0, "eval_examples": 2},
        # Two epochs over ten examples are five steps, not ten.
        "c": {"examples": 10, "tokens": 40.0, "eval_tokens": 30.0, "eval_examples": 2},
    },
}


def estimate(calibration=CALIBRATION, recipe=RECIPE, **sizes):
    return plan.Estimate(plan.Sizes(TASKS, 8, 2, **sizes), recipe, calibration)


def test_a_row_is_loading_training_and_scoring():
    row = estimate().row("a")
    assert (row.trained, row.scored, row.disk) == (10 * 4 * 20, 8 * 50 + 2 * 30, 8 * 20)
    assert row.seconds(CALIBRATION) == 3 + 800 / 10 + 460 / 100
    assert estimate().row("c").trained == 5 * 4 * 40


def test_steps_of_a_group_and_weights_that_are_kept_count():
    recipe = RECIPE.model_copy(update={"group_steps": {"h": 2}, "keep_weights": True})
    noise = NoiseSettings(tasks=["c"], trainings=1, measurements=1)
    replay = Replay(strategies=["random"], ratio=0.25)
    jobs = estimate(recipe=recipe, noise=noise, replay=replay, directions=True).jobs()
    row = jobs["measure_row"][2]
    assert row.trained == 2 * 4 * 40
    assert row.disk == 8 * 20 + 4000
    # No other job keeps weights.
    for rule in ("repeat_row", "replay_run", "measure_direction"):
        assert all(work.disk < 4000 for work in jobs[rule]), rule


def test_the_divergence_of_held_out_examples_costs_two_passes():
    replay = Replay(strategies=["random"], ratio=0.25)
    (plain, *_) = estimate(replay=replay).jobs()["replay_run"]
    measured = replay.model_copy(update={"heldout_kl": True})
    (both, *_) = estimate(replay=measured).jobs()["replay_run"]
    assert both.scored == plain.scored + 2 * 2 * 50


def test_a_swapped_example_costs_the_pass_of_its_teacher():
    replay = Replay(strategies=["random"], ratio=0.25, accounting="swap")
    (swapped, *_) = estimate(replay=replay).jobs()["replay_run"]
    assert swapped.trained == pytest.approx(800 + 5 * 50 / 3)


def test_every_job_that_runs_a_model_is_counted():
    paper = {"objective": "text", "dose": "mixed"}
    replay = Replay(strategies=["none", "random", "mf"], seeds=[0, 1], ratio=0.25, **paper)
    noise = NoiseSettings(tasks=["a"], trainings=2, measurements=3)
    jobs = estimate(noise=noise, replay=replay, directions=True).jobs(Pretraining())
    assert {rule: len(works) for rule, works in jobs.items()} == {
        "pretrain_model": 1,
        "score_base": 1,
        "measure_row": 3,
        "measure_direction": 3,
        "repeat_row": 2,
        "replay_run": 6,
    }
    assert jobs["repeat_row"][0].scored == 4 * 8 * 50 + 2 * 30
    copied, *_ = jobs["replay_run"]
    assert copied.seconds(CALIBRATION) == 0, "seed 0 without replay is the row itself"
    # Twenty new examples, five replayed, held-out examples scored.
    assert jobs["replay_run"][2].trained == 800 + 5 * 50
    assert jobs["replay_run"][2].scored == 2 * 50 + 2 * 30
    line = {"strategy": "none", "interpolate": [0.25, 0.5, 0.75]}
    shares = Replay(strategies=["random"], variants={"line": line}, **paper)
    *_, of_line = estimate(replay=shares).jobs(Pretraining())["replay_run"]
    # One training; the fine-tuned model and its three shares are scored.
    assert of_line.trained == 800
    assert of_line.scored == jobs["replay_run"][2].scored + 3 * 2 * 50
    swap = replay.model_copy(update={"accounting": "swap"})
    assert estimate(replay=swap).jobs()["replay_run"][2].trained == 800


def test_replay_with_the_base_model_beside_it_costs_its_forward_passes():
    variants = {
        "text": {"strategy": "random", "objective": "text", "dose": "mixed"},
        "prompts": {"strategy": "none", "recipe": {"prompt_kl": 1.0}},
        "short": {"strategy": "none", "recipe": {"steps": 5}},
    }
    replay = Replay(strategies=["random"], variants=variants, ratio=0.25, tasks="all")
    works = estimate(replay=replay).jobs()["replay_run"]
    assert len(works) == 4 * 3, "every task is a test task"
    trained = [work.trained for work in works[::3]]
    expected = [800 + 4 / 3 * 10 * 50, 800 + 10 * 50, 4 / 3 * 800, 400]
    assert trained == pytest.approx(expected)


def test_steps_of_sequences_and_the_mixed_fine_tune_are_counted():
    replay = Replay(strategies=["random"], ratio=0.25, objective="text", dose="mixed")
    sequences = Sequences(
        orders={"o": ["a", "b"], "p": ["b", "a"]},
        runs={"none": {"replay": "none"}, "random": {"replay": "random", "orders": ["o"]}},
        epochs={"b": 1},
        seeds=[0, 1],
    )
    jobs = estimate(replay=replay, sequences=sequences).jobs()
    steps = jobs["sequence_step"]
    assert len(steps) == 2 * (2 + 2 + 2)
    first, _, second = steps[:3]
    assert (first.trained, first.scored, first.disk) == (10 * 4 * 20, 8 * 50 + 2 * 30, 8 * 20)
    # One pass over 100 examples are 25 steps. Task a is measured once more.
    assert (second.trained, second.scored) == (25 * 4 * 20, 8 * 50 + 2 * 30 + 30)
    assert second.disk == 8 * 20 + 4000, "the last step's weights stay"
    replayed = steps[8]
    assert replayed.trained == 10 * 4 * 20 + 10 * 50
    mixed = jobs["multitask_row"]
    assert len(mixed) == 2, "both orders share one per seed"
    assert mixed[0].trained == 10 * 4 * 20 + 25 * 4 * 20
    some = sequences.model_copy(update={"models": ["other"], "multitask": False})
    assert "sequence_step" not in estimate(replay=replay, sequences=some).jobs()
    alone = sequences.model_copy(update={"multitask": False})
    assert "multitask_row" not in estimate(replay=replay, sequences=alone).jobs()


def test_strategies_that_probe_the_model_cost_their_forward_passes():
    strategies = ["random", "online", "closed_loop", "mir"]
    replay = Replay(
        strategies=strategies, ratio=0.25, tasks="all", probes=3, closed_loop_after=[0.3, 0.6]
    )
    works = estimate(replay=replay).jobs()["replay_run"]
    scored = [work.scored for work in works[::3]]
    tokens = CALIBRATION["upstream_tokens"]
    # Of eight upstream examples two are held out, and mir has no more than six candidates.
    expected = [0, 3 * tokens, 2 * 3 * tokens, 6 * tokens]
    assert [value - scored[0] for value in scored] == pytest.approx(expected)


def test_answers_take_their_time_and_a_model_in_two_copies_is_loaded_twice():
    asking = CALIBRATION | {"answer_seconds": 2.0, "loads": 2}
    row = estimate(asking).row("a")
    assert row.answers == 8 + 2 * 2
    assert row.seconds(asking) == 2 * 3 + 80 + 4.6 + 12 * 2
    assert estimate(asking).jobs()["score_base"][0].answers == 16


def test_probes_cost_less_than_all_and_least_while_training_anyway():
    ways = plan.Estimate(plan.Sizes(TASKS, 8, 2, probes=4), RECIPE, CALIBRATION).ways()
    seconds = {way: work.seconds(CALIBRATION) for way, work in ways.items()}
    assert seconds["online"] == 4 * 50 / 100
    assert seconds["exhaustive"] - seconds["offline"] == pytest.approx(4 * 50 / 100)
    assert seconds["offline"] > seconds["online"]


@pytest.mark.parametrize(
    ("device", "cost"),
    [
        ("NVIDIA H100", {"gpu_hours": 4.0, "core_hours": 6.0, "money": 10.0}),
        ("cpu", {"gpu_hours": 0.0, "core_hours": 6.0, "money": 0.6}),
    ],
)
def test_hours_are_those_of_all_gpus_and_cores(device, cost):
    machine = plan.Machine(gpus=2, threads=3, gpu_hour=2.5, core_hour=0.1)
    assert machine.cost(7200, device != "cpu") == pytest.approx(cost)
    assert plan.Machine(2, 3).cost(7200, True)["money"] is None


def test_the_plan_adds_up_and_reads_as_a_table():
    model = {"recipe": RECIPE.model_dump(), "gpus": 1, "threads": 1, "pretraining": None}
    sizes = {"noise": None, "replay": None, "directions": False}
    prices = {"gpu_hour": 2.0, "core_hour": None, "currency": "EUR"}
    calibrations = {"m": CALIBRATION, "n": CALIBRATION | {"device": "H100"}}
    made = plan.make_plan(
        calibrations,
        {"m": model, "n": model},
        tasks=TASKS,
        splits={"heldout": 2, "replayable": 6},
        sizes=sizes,
        prices=prices,
    )
    *parts, total = made.lines
    assert total["jobs"] == sum(line["jobs"] for line in parts) == 8
    assert total["money"] is None, "without the price of a core there is no sum"
    assert parts[-1]["money"] == pytest.approx(2 * parts[-1]["seconds"] / 3600)
    assert "EUR" in made.text and "trains 10 and scores 100 tokens per second" in made.text


def test_the_plan_says_how_many_tasks_a_comparison_of_replay_needs():
    model = {"recipe": RECIPE.model_dump(), "gpus": 1, "threads": 1, "pretraining": None}
    replay = Replay(strategies=["none", "random", "gaussian"], tasks="all").model_dump(mode="json")
    made = plan.make_plan(
        {"m": CALIBRATION},
        {"m": model},
        tasks=TASKS,
        splits={"heldout": 2, "replayable": 6},
        sizes={"noise": None, "replay": replay, "directions": False},
        prices={"gpu_hour": None, "core_hour": None, "currency": "EUR"},
    )
    tested = f"replay: {len(TASKS)} test tasks can reach p ="
    assert tested in made.text
    assert "p < 0.05 needs at least" in made.text


def row(**about):
    losses = np.zeros(2, np.float32)
    return rows.Row(["x", "y"], losses, losses, np.ones(2, np.int32), {}, about)


def test_the_ledger_compares_finished_rows_with_the_estimate():
    planned = [
        {"model": "m", "rule": rule, "jobs": 2, "seconds": 10.0}
        | {"training_tokens": 100, "disk_mb": 1.0}
        for rule in ("pretrain_model", "measure_row", "repeat_row")
    ]
    about = {"training_tokens_per_second": 30.0, "training_seconds": 2.0, "seconds": 9.0}
    again = about | {"seconds": 1.0, "measurement": 1}
    finished = {
        ("m", "measure_row"): [
            ledger.FinishedRow(row(**about), 500_000),
            ledger.FinishedRow(row(**about, copied=True), 500_000),
        ],
        ("m", "repeat_row"): [
            ledger.FinishedRow(row(**about), 1),
            ledger.FinishedRow(row(**again), 1),
        ],
    }
    measured, repeated = ledger.ledger_lines(planned, finished)
    assert (measured["jobs"], measured["seconds"], measured["ratio"]) == (2, 9.0, 0.9)
    assert (measured["training_tokens"], measured["disk_mb"]) == (60, 1.0)
    assert (repeated["jobs"], repeated["seconds"]) == (1, 10.0)
    assert measured["money"] is None
    assert "measure_row" in ledger.ledger_text([measured])
    assert "money" not in ledger.ledger_text([measured])
    # So plan.csv without a price is read.
    unpriced, _ = ledger.ledger_lines([line | {"money": np.nan} for line in planned], finished)
    assert unpriced["money"] is None and unpriced["money_planned"] is None
    priced = [line | {"money": 2.0} for line in planned]
    measured, _ = ledger.ledger_lines(priced, finished)
    assert (measured["money_planned"], measured["money"]) == (2.0, 1.8)
    assert "1.80" in ledger.ledger_text([measured])


def test_a_row_of_an_older_version_has_no_seconds():
    planned = [{"model": "m", "rule": "measure_row", "jobs": 1, "seconds": 1.0}]
    planned[0] |= {"training_tokens": 1, "disk_mb": 1.0}
    finished = {("m", "measure_row"): [ledger.FinishedRow(row(), 1)]}
    [line] = ledger.ledger_lines(planned, finished)
    assert np.isnan(line["seconds"])


def test_a_table_is_aligned_and_shows_what_is_missing():
    text = tables.as_text(
        [{"a_b": "x", "n": 1000}, {"a_b": "long", "n": None}], {"a_b": str, "n": "{:,}".format}
    )
    assert text.splitlines() == ["a b       n", "x     1,000", "long      -"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_calibrated_on_the_examples_of_the_experiment(model_folders, dtype):
    examples = [UpstreamExample(f"a-{i}", "a", "heldout", e) for i, e in enumerate(tiny.pairs(9))]
    sample = Sample(
        {"s": tiny.pairs(6, seed=1), "t": [Example("longer " * 4, "answer")] * 3},
        {"s": tiny.pairs(4, seed=2), "t": tiny.pairs(1, seed=3)},
        examples,
    )
    scoring = Scoring(max_tokens=24, dtype=dtype, exact_match=ExactMatch(max_new_tokens=2))
    loaded = []

    def load():
        loaded.append(1)
        return models.load(model_folders["llama"], dtype)

    measured = calibrate_model(
        load,
        sample,
        recipe=RECIPE.model_copy(update={"ewc": 1.0}),
        scoring=scoring,
        steps=2,
        examples=5,
    )
    size = 4 if dtype == "float32" else 2
    assert measured["weight_bytes"] == size * measured["parameters"]
    assert len(loaded) == measured["loads"] == (1 if dtype == "float32" else 2)
    for key in ("training_tokens_per_second", "scoring_tokens_per_second", "answer_seconds"):
        assert measured[key] > 0
    assert measured["tasks"]["t"]["tokens"] > measured["tasks"]["s"]["tokens"]
    assert measured["tasks"]["s"]["examples"] == 6 and measured["tasks"]["s"]["eval_examples"] == 4
    assert 5 < measured["row_bytes"] < 2000


def test_a_plan_of_tasks_without_answers_is_refused(model_folders):
    empty = {"s": [Example("question", " ")]}
    upstream = tiny.upstream(4)
    with pytest.raises(LetheError, match="no training example"):
        calibrate_model(
            lambda: models.load(model_folders["llama"]),
            Sample(empty, empty, upstream),
            recipe=RECIPE,
            scoring=Scoring(max_tokens=24),
            steps=1,
            examples=2,
        )
