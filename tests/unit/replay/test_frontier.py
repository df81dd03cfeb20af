import numpy as np
import pytest

from lethe.config.replay_settings import Replay
from lethe.replay.frontier import compare_at_equal_loss, forgetting_at
from lethe.replay.planned_contrasts import frontier_runs, runs_by_frontier
from lethe.statistics import bootstrap_p

LOSSES = np.array([1.0, 1.2, 1.1, 1.4])
FORGETTING = np.array([0.4, 0.2, 0.5, 0.1])


def at(loss, losses=LOSSES, forgetting=FORGETTING):
    return forgetting_at(np.array([loss]), losses[None], forgetting[None])[0]


def by_interpolation(loss, losses, forgetting):
    """The runs that no other beats, one after the other, and a straight line between two."""
    best = []
    for i in np.lexsort((forgetting, losses)):
        if not best or forgetting[i] < forgetting[best[-1]]:
            best.append(i)
    if not losses[best[0]] <= loss <= losses[best[-1]]:
        return np.nan
    return np.interp(loss, losses[best], forgetting[best])


def test_many_draws_at_once_are_interpolated_as_one_by_one():
    rng = np.random.default_rng(0)
    losses, forgetting = rng.normal(size=(500, 6)), rng.normal(size=(500, 6))
    loss = rng.normal(size=500)
    expected = [
        by_interpolation(*of_draw) for of_draw in zip(loss, losses, forgetting, strict=True)
    ]
    np.testing.assert_allclose(forgetting_at(loss, losses, forgetting), expected)
    assert 100 < np.isfinite(expected).sum() < 490


def test_the_frontier_joins_the_runs_that_no_other_beats():
    assert at(1.0) == pytest.approx(0.4)
    assert at(1.1) == pytest.approx(0.3), "1.1 @ 0.5 is beaten"
    assert at(1.3) == pytest.approx(0.15)
    assert at(1.4) == pytest.approx(0.1)


def test_nothing_is_extrapolated():
    assert np.isnan(at(0.9))
    assert np.isnan(at(1.5))


def test_a_frontier_is_no_replay_and_random_replay_of_one_objective():
    variants = {
        "text": {"strategy": "random", "objective": "text"},
        "text-low": {"strategy": "random", "objective": "text", "weight": 1},
        "strong": {"strategy": "random", "weight": 16},
        "near": {"strategy": "none", "recipe": {"l2": 1}},
        "between": {"strategy": "none", "interpolate": 0.5},
        "near-random": {"strategy": "random", "recipe": {"l2": 1}},
    }
    replay = Replay(strategies=["none", "random", "gaussian"], variants=variants)
    assert frontier_runs(replay) == {
        "text": ["none", "text", "text-low"],
        "kl": ["none", "random", "strong"],
    }
    assert frontier_runs(Replay(strategies=["none", "random", "gaussian"])) == {}


def test_a_term_in_every_step_is_no_dose_of_replay_in_the_mixture():
    variants = {
        "strong": {"strategy": "random", "weight": 16},
        "step": {"strategy": "random", "dose": "step"},
        "strong-step": {"strategy": "random", "dose": "step", "weight": 16},
    }
    settings = {"strategies": ["none", "random"], "objective": "kl", "variants": variants}
    token = frontier_runs(Replay(**settings, dose="token"))
    assert token == {
        "kl": ["none", "random", "strong"],
        "kl, step": ["none", "step", "strong-step"],
    }
    variants = {
        "strong": {"strategy": "random", "weight": 16},
        "token": {"strategy": "random", "dose": "token"},
        "strong-token": {"strategy": "random", "dose": "token", "weight": 16},
    }
    step = frontier_runs(Replay(**settings | {"variants": variants}, dose="step"))
    assert step == {
        "kl": ["none", "random", "strong"],
        "kl, token": ["none", "token", "strong-token"],
    }


def test_runs_of_one_ratio_are_a_frontier_of_their_own():
    variants = {
        "strong": {"strategy": "random", "weight": 16},
        "more": {"strategy": "random", "ratio": 0.25},
        "gaussian-more": {"strategy": "gaussian", "ratio": 0.25},
    }
    replay = Replay(strategies=["none", "random", "gaussian"], ratio=0.125, variants=variants)
    frontiers = frontier_runs(replay)
    assert frontiers == {
        "kl": ["none", "random", "strong", "more"],
        "kl, 1 in 8": ["none", "random", "strong"],
    }
    assert runs_by_frontier(replay, frontiers) == {"kl, 1 in 8": ["random", "gaussian", "strong"]}
    points = {name: (1.0, 0.4) for name in replay.names}
    points |= {"random": (1.2, 0.2), "strong": (1.4, 0.1), "gaussian": (1.3, 0.1)}
    lines = compare_at_equal_loss(
        records_of(points), frontiers, runs_by_frontier(replay, frontiers)
    )
    by_frontier = {}
    for line in lines:
        by_frontier.setdefault(line["frontier"], set()).add(line["strategy"])
    assert by_frontier["kl, 1 in 8"] == {"random", "gaussian", "strong"}
    assert by_frontier["kl"] == set(replay.names)


def records_of(points, spread=0.01):
    rng = np.random.default_rng(0)
    records = []
    for task in range(20):
        own = rng.normal(0, 0.3)
        for name, (loss, forgetting) in points.items():
            record = {"strategy": name, "task": f"t{task}", "seed": 0}
            record["eval_loss_after"] = loss + own
            record["heldout_forgetting"] = forgetting + spread * rng.normal()
            records.append(record)
    return records


def test_a_run_below_the_curve_is_better_than_another_dose_and_one_on_it_is_not():
    points = {"none": (1.0, 0.4), "random": (1.2, 0.2), "strong": (1.4, 0.1)}
    points |= {"below": (1.1, 0.2), "on": (1.3, 0.15), "outside": (0.9, 0.0)}
    lines = compare_at_equal_loss(records_of(points), {"kl": ["none", "random", "strong"]})
    by_name = {line["strategy"]: line for line in lines}
    below = by_name["below"]
    assert below["frontier_value"] == pytest.approx(0.3, abs=0.01)
    assert below["difference"] == pytest.approx(-0.1, abs=0.01)
    assert below["high"] < -0.08 and below["low"] > -0.12
    # No resampled mean is on the other side of 0: the least p of 20 tasks.
    assert below["p"] == pytest.approx(bootstrap_p(20, 1 / 100_001))
    assert below["p"] < 0.001
    assert by_name["on"]["low"] < 0 < by_name["on"]["high"]
    assert by_name["on"]["p"] > 0.01
    assert np.isnan([by_name["outside"][key] for key in ("difference", "low", "p")]).all()
    assert below["task_difference"] == pytest.approx(-0.1, abs=0.01)
    assert (below["task_count"], below["tasks_lower"]) == (20, 20)
    assert by_name["outside"]["task_count"] == 0
    # A run of the curve is measured by the curve without it; at its ends there is none.
    assert by_name["random"]["frontier_value"] == pytest.approx(0.25, abs=0.01)
    assert np.isnan(by_name["none"]["difference"])


def test_the_worst_domain_is_compared_at_equal_loss_too():
    points = {"none": (1.0, 0.4), "random": (1.2, 0.2), "strong": (1.4, 0.1)}
    records = records_of(points)
    for record in records:
        record["worst_domain_forgetting"] = 2 * record["heldout_forgetting"]
    lines = compare_at_equal_loss(records, {"kl": list(points)})
    mean, worst = (line for line in lines if line["strategy"] == "random")
    assert (mean["measure"], worst["measure"]) == ("heldout_forgetting", "worst_domain_forgetting")
    assert worst["difference"] == pytest.approx(2 * mean["difference"])


def test_every_task_is_compared_with_a_frontier_of_its_own():
    points = {"none": (1.0, 0.4), "random": (1.2, 0.2), "strong": (1.4, 0.1), "below": (1.1, 0.2)}
    records = records_of(points, spread=0.0)
    for record in records:
        # On every other task the run forgets as little as its own frontier, at a higher loss.
        if record["strategy"] == "below" and int(record["task"][1:]) % 2:
            record["eval_loss_after"] += 0.1
        # On one task it learns worse than all of them, on another one better. One lacks a value.
        if record["strategy"] == "below" and record["task"] in ("t2", "t6"):
            record["eval_loss_after"] += 0.5 if record["task"] == "t2" else -0.5
        if record["strategy"] == "random" and record["task"] == "t4":
            record["heldout_forgetting"] = float("nan")
    lines = compare_at_equal_loss(records, {"kl": ["none", "random", "strong"]})
    (line,) = [line for line in lines if line["strategy"] == "below"]
    assert line["task_count"] == 18
    # Seven tasks lie .1 below. On t2 the run forgets .1 more than the one that forgets least.
    assert line["task_difference"] == pytest.approx(-0.1 * (7 - 1) / 18)
    assert line["task_low"] < line["task_difference"] < line["task_high"]


def test_tasks_that_were_not_measured_are_left_out():
    points = {"none": (1.0, 0.4), "random": (1.2, 0.2), "strong": (1.4, 0.1), "below": (1.1, 0.2)}
    records = records_of(points)
    records[0]["heldout_forgetting"] = float("nan")
    lines = compare_at_equal_loss(records[:-1], {"kl": ["none", "random", "strong"]})
    assert [line["tasks"] for line in lines if line["strategy"] == "below"] == [18]


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.06, 0.1, 0.2])
def test_p_is_below_05_where_the_interval_excludes_0(shift):
    points = {"none": (1.0, 0.4), "random": (1.2, 0.2), "run": (1.1, 0.3 - shift)}
    records = [record for record in records_of(points, spread=0.1) if int(record["task"][1:]) < 6]
    (line,) = [
        line
        for line in compare_at_equal_loss(records, {"kl": ["none", "random"]})
        if line["strategy"] == "run"
    ]
    assert (line["p"] < 0.05) == (not line["low"] < 0 < line["high"])


def test_the_order_of_runs_that_forget_alike_makes_no_difference():
    losses, forgetting = np.array([1.0, 1.5, 2.0]), np.array([0.5, 0.5, 0.1])
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        assert at(1.5, losses[order], forgetting[order]) == pytest.approx(0.3)


def test_a_task_beyond_runs_that_forget_nothing_is_compared_with_the_cheapest_of_them():
    doses = {"none": (0.8, 0.3), "weak": (1.0, 0.0), "strong": (1.5, 0.0), "other": (1.2, 0.1)}
    for order in (list(doses), list(doses)[::-1]):
        records = []
        for name in order:
            for task in "abcdef":
                loss, value = doses[name]
                record = {"strategy": name, "task": task, "seed": 0}
                records.append(record | {"eval_loss_after": loss, "heldout_forgetting": value})
        lines = compare_at_equal_loss(records, {"kl": ["none", "weak", "strong"]})
        [line] = [line for line in lines if line["strategy"] == "other"]
        assert line["task_count"] == 6
        assert line["task_difference"] == pytest.approx(0.1)
