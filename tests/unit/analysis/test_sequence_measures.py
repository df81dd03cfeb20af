import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.analysis.sequence_measures import (
    HeldOutExamples,
    compare_runs,
    find_heldout,
    measure_lines,
    step_lines,
    task_lines,
    task_measures,
)
from lethe.matrix.sequence_rows import MeasuredSequence, MultitaskFineTune, TaskScores

NAN = math.nan
# Three tasks; every number below is worked out by hand.
SCORES = TaskScores(
    after=np.array([[0.8, NAN, NAN], [0.9, 0.7, NAN], [0.5, 0.4, 0.6]]),
    before=np.array([0.1, 0.3, 0.2]),
    base=np.array([0.1, 0.2, 0.3]),
    single=np.array([0.8, 0.8, 0.8]),
)


def held_out(*mask):
    """Held-out examples of a mask, each of a domain of its own."""
    return HeldOutExamples(np.array(mask), domains=[f"d{i}" for i in range(sum(mask))])


ALL = held_out(True, True, True, True)


def sequence(order="o", run="none", seed=0, scores=SCORES, shift=0.0):
    forgetting = np.arange(12, dtype=float).reshape(3, 4) / 10 + shift
    return MeasuredSequence(
        order=order,
        run=run,
        seed=seed,
        tasks=["x", "y", "z"],
        forgetting=forgetting,
        scores={"nats": scores},
        replayed=[0, 4, 4],
    )


def test_the_measures_are_those_of_their_formulas():
    measures = task_measures(SCORES)
    assert measures["acc"] == pytest.approx(0.5)
    # (0.5 - 0.8 + 0.4 - 0.7) / 2, and not / 3 as some code divides.
    assert measures["bwt"] == pytest.approx(-0.3)
    # The best of x is 0.9, after the second step.
    assert measures["forgetting"] == pytest.approx((0.4 + 0.3) / 2)
    assert measures["fwt"] == pytest.approx((0.1 - 0.1) / 2)
    assert measures["fwt_single"] == pytest.approx((0 - 0.1 - 0.2) / 3)
    assert measures["learning"] == pytest.approx((0.7 + 0.5 + 0.3) / 3)


def test_forgetting_can_be_negative_because_the_last_step_is_no_earlier_one():
    better = TaskScores(
        after=np.array([[0.5, NAN], [0.9, 0.7]]),
        before=np.array([0.1, 0.1]),
        base=np.array([0.1, 0.1]),
        single=np.array([0.5, 0.5]),
    )
    assert task_measures(better)["forgetting"] == pytest.approx(-0.4)
    assert task_measures(better)["bwt"] == pytest.approx(0.4)


def test_a_sequence_of_one_task_has_no_backward_transfer():
    one = TaskScores(
        after=np.array([[0.5]]),
        before=np.array([0.1]),
        base=np.array([0.1]),
        single=np.array([0.5]),
    )
    measures = task_measures(one)
    assert measures["acc"] == 0.5
    assert all(math.isnan(measures[name]) for name in ("bwt", "forgetting", "fwt"))


def test_every_run_is_compared_over_orders_and_paired_with_the_reference():
    heldout = held_out(True, False, False, True)
    sequences = [
        sequence("o"),
        sequence("p", shift=0.2),
        sequence("o", "replay", shift=-0.1),
        sequence("p", "replay", shift=-0.1),
    ]
    mixed = [
        MultitaskFineTune("o", 0, np.full(4, 0.5), {"nats": {"x": -1.0, "y": -2.0, "z": -3.0}})
    ]
    lines = measure_lines(sequences, mixed, heldout, {"o": "o", "p": "o"})
    compared = {}
    for line in compare_runs(lines, "none", {"o": "o", "p": "o"}):
        compared[line["run"], line["unit"], line["measure"]] = line
    base = compared["none", "nats", "upstream_forgetting"]
    assert base["mean"] == pytest.approx(np.mean([0.95, 1.15]))
    assert base["sd"] == pytest.approx(0.2 / math.sqrt(2))
    assert base["orders"] == 2 and "difference" not in base
    replay = compared["replay", "nats", "heldout_forgetting"]
    assert replay["difference"] == pytest.approx(-0.2)
    assert compared["multitask", "nats", "acc"]["mean"] == pytest.approx(-2)
    assert compared["multitask", "nats", "upstream_forgetting"]["mean"] == pytest.approx(0.5)


def test_an_order_without_a_measure_is_left_out_of_its_mean():
    lines = []
    for run, values in {"none": [np.nan, -0.2, -0.4], "replay": [np.nan, -0.1, -0.1]}.items():
        for order, value in zip("opq", values, strict=True):
            lines.append(
                {"run": run, "unit": "nats", "measure": "bwt", "order": order, "value": value}
            )
    none, replay = compare_runs(lines, "none")
    assert (none["orders"], none["mean"]) == (2, pytest.approx(-0.3))
    assert none["low"] <= none["mean"] <= none["high"]
    assert replay["difference"] == pytest.approx(0.2)


def mixed_fine_tune(order, acc, forgetting):
    return MultitaskFineTune(order, 0, np.full(4, forgetting), {"nats": {"x": acc}})


def test_a_fine_tune_on_all_tasks_that_orders_share_is_counted_once():
    heldout = ALL
    sequences = [sequence("o"), sequence("p", shift=0.2), sequence("q")]
    mixed = [mixed_fine_tune("o", -1.0, 0.5), mixed_fine_tune("q", -2.0, 0.8)]
    shared = {"o": "o", "p": "o", "q": "q"}
    lines = measure_lines(sequences, mixed, heldout, shared)
    assert sum(line["run"] == "multitask" and line["measure"] == "acc" for line in lines) == 3
    compared = {}
    for line in compare_runs(lines, "none", shared):
        compared[line["run"], line["measure"]] = line
    forgotten = compared["multitask", "heldout_forgetting"]
    assert forgotten["orders"] == 2 and forgotten["mean"] == pytest.approx(0.65)
    assert forgotten["sd"] == pytest.approx(0.3 / math.sqrt(2))
    # Paired with each of the three orders.
    differences = [0.5 - 0.95, 0.5 - 1.15, 0.8 - 0.95]
    assert forgotten["difference"] == pytest.approx(np.mean(differences))
    only = [mixed_fine_tune("o", -1.0, 0.5)]
    lines = measure_lines(sequences[:2], only, heldout, {"o": "o", "p": "o"})
    by_measure = {}
    for line in compare_runs(lines, "none", {"o": "o", "p": "o"}):
        by_measure[line["run"], line["measure"]] = line
    once = by_measure["multitask", "acc"]
    assert once["orders"] == 1 and math.isnan(once["sd"]) and math.isnan(once["low"])


def test_an_order_without_its_fine_tune_on_all_tasks_is_named_in_a_warning(caplog):
    heldout = ALL
    sequences = [sequence("o"), sequence("p")]
    lines = measure_lines(
        sequences, [mixed_fine_tune("o", -1.0, 0.5)], heldout, {"o": "o", "p": "p"}
    )
    assert {line["order"] for line in lines if line["run"] == "multitask"} == {"o"}
    assert "1 order(s) have no fine-tune on all tasks mixed" in caplog.text
    assert "p (seed 0)" in caplog.text
    caplog.clear()
    measure_lines(sequences, [], heldout, {"o": "o", "p": "p"})
    assert not caplog.text


def test_upstream_measures_are_shares_where_exact_match_is_measured():
    exact = MeasuredSequence(
        order="o",
        run="none",
        seed=0,
        tasks=["x", "y", "z"],
        forgetting=np.full((3, 4), 0.25),
        scores={"nats": SCORES, "exact_match": SCORES},
        replayed=[0, 0, 0],
    )
    scores = {"nats": {"x": -1.0}, "exact_match": {"x": 0.5}}
    mixed = [MultitaskFineTune("o", 0, np.full(4, 0.5), scores)]
    lines = measure_lines([exact], mixed, ALL, {"o": "o"})
    units = {}
    for line in lines:
        units.setdefault((line["run"], line["measure"]), set()).add(line["unit"])
    for run in ("none", "multitask"):
        assert units[run, "upstream_forgetting"] == {"exact_match"}
        assert units[run, "heldout_forgetting"] == {"exact_match"}
        assert units[run, "acc"] == {"nats", "exact_match"}


def test_a_step_has_its_own_forgetting_and_the_sum_of_the_rows_so_far():
    single = {"x": np.full(4, 0.1), "y": np.full(4, 0.2), "z": np.full(4, 0.4)}
    lines = step_lines([sequence()], held_out(True, False, False, False), single)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["sum_of_single"] for line in lines] == pytest.approx([0.1, 0.3, 0.7])
    assert lines[2]["mean_forgetting"] == pytest.approx(0.95)
    assert lines[2]["heldout_forgetting"] == pytest.approx(0.8)
    assert lines[1]["score_before_nats"] == 0.3 and lines[1]["score_at_end_nats"] == 0.4


def test_the_table_of_tasks_has_the_steps_that_were_measured():
    lines = task_lines([sequence()])
    of_y = {line["step"]: line["score"] for line in lines if line["task"] == "y"}
    assert of_y == {0: 0.2, 1: 0.3, 2: 0.7, 3: 0.4}
    of_x = {line["step"]: line["score"] for line in lines if line["task"] == "x"}
    assert of_x == {0: 0.1, 1: 0.8, 2: 0.9, 3: 0.5}


def test_rises_and_drift_of_the_held_out_examples_stand_beside_their_mean():
    fell = replace(sequence(), forgetting=np.array([[0.0] * 4, [0.0] * 4, [0.9, -0.5, 0.02, 0.3]]))
    heldout = HeldOutExamples(np.array([True, True, True, False]), ["a", "b", "b"], noise_floor=0.1)
    lines = measure_lines([replace(fell, heldout_kl=[0.1, 0.2, 0.4])], [], heldout, {})
    values = {line["measure"]: (line["value"], line["unit"]) for line in lines}
    assert values["heldout_forgetting"] == (pytest.approx(0.14), "nats")
    assert values["worst_domain_forgetting"] == (pytest.approx(0.9), "nats")
    assert values["rise_share"] == (pytest.approx(1 / 3), "share")
    assert values["rise_mean"] == (pytest.approx(0.9), "nats")
    assert values["drift"] == (pytest.approx((0.9 + 0.5 + 0.02) / 3), "nats")
    assert values["heldout_kl"] == (0.4, "nats")
    single = {"x": np.zeros(4), "y": np.zeros(4), "z": np.zeros(4)}
    steps = step_lines([replace(fell, heldout_kl=[0.1, 0.2, 0.4])], heldout, single)
    assert [line["heldout_kl"] for line in steps] == [0.1, 0.2, 0.4]
    assert [line["drift"] for line in steps] == pytest.approx([0, 0, 1.42 / 3])
    assert "heldout_kl" not in step_lines([fell], heldout, single)[0]
    mixed = replace(mixed_fine_tune("o", -1.0, 0.5), heldout_kl=0.7)
    of_mixture = {}
    for line in measure_lines([fell], [mixed], heldout, {"o": "o"}):
        if line["run"] == "multitask":
            of_mixture[line["measure"]] = line["value"]
    assert (of_mixture["heldout_kl"], of_mixture["drift"]) == (0.7, 0.5)


def test_the_noise_of_rises_is_that_between_seeds_of_the_reference_run():
    upstream = tiny.upstream(4)
    mask = [example.split == "heldout" for example in upstream]
    sequences = []
    for seed, shift in enumerate((0.0, 0.2)):
        sequences.append(sequence(seed=seed, shift=shift))
        sequences.append(sequence(run="replay", seed=seed, shift=10 * shift))
    found = find_heldout(upstream, sequences, "none")
    assert found.mask.tolist() == mask and len(found.domains) == sum(mask)
    assert found.noise_floor == pytest.approx(2 * 0.2 / math.sqrt(2))
    assert find_heldout(upstream, sequences[:2], "none").noise_floor == 0
    assert find_heldout(upstream, sequences, "none", noise_floor=0.3).noise_floor == 0.3
