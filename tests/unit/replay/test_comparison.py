import numpy as np
import pytest
from scipy import stats

from lethe.replay.comparison import compare

TASKS = ("a", "b", "c", "d", "e")


def runs(strategy, losses, seeds=(0,), own=1.0):
    return [
        {
            "strategy": strategy,
            "task": task,
            "seed": seed,
            "heldout_forgetting": loss + 0.01 * seed,
            "eval_loss_after": own,
        }
        for task, loss in zip(TASKS, losses, strict=True)
        for seed in seeds
    ]


RANDOM = (0.5, 0.4, 0.3, 0.6, 0.2)
BETTER = (0.4, 0.2, 0.0, 0.2, 0.1)


@pytest.fixture
def lines():
    made = runs("random", RANDOM) + runs("oracle", BETTER, own=1.5) + runs("mf", RANDOM)
    return {line["strategy"]: line for line in compare(made)}


def test_means_and_paired_differences_are_those_of_hand(lines):
    assert lines["random"]["heldout_forgetting"] == pytest.approx(0.4)
    assert lines["oracle"]["heldout_forgetting"] == pytest.approx(0.18)
    assert lines["oracle"]["heldout_forgetting_difference"] == pytest.approx(-0.22)
    assert lines["oracle"]["eval_loss_after_difference"] == pytest.approx(0.5)
    assert (lines["oracle"]["tasks"], lines["oracle"]["seeds"]) == (5, 1)


def test_intervals_hold_the_mean_and_are_of_the_differences(lines):
    line = lines["oracle"]
    low, high = (line[f"heldout_forgetting_difference_{end}"] for end in ("low", "high"))
    # Five tasks give next to the range of their differences, which are -0.4 to -0.1.
    assert (low, high) == pytest.approx((-0.4, -0.1), abs=0.03)
    assert low < -0.22 < high
    # The same difference on every task has no spread.
    assert line["eval_loss_after_difference_low"] == pytest.approx(0.5)
    assert line["eval_loss_after_difference_high"] == pytest.approx(0.5)


def test_p_is_wilcoxons_over_tasks_and_undefined_without_a_difference(lines):
    expected = stats.wilcoxon(np.subtract(BETTER, RANDOM)).pvalue
    assert lines["oracle"]["heldout_forgetting_difference_p"] == pytest.approx(expected)
    assert np.isnan(lines["mf"]["heldout_forgetting_difference_p"])
    assert lines["mf"]["heldout_forgetting_difference"] == 0


def test_p_is_corrected_by_holm_over_the_strategies_but_random():
    worse = [loss + 0.1 * (i + 1) for i, loss in enumerate(RANDOM)]
    mixed = [loss + d for loss, d in zip(RANDOM, (0.1, -0.02, 0.3, 0.2, -0.01), strict=True)]
    made = runs("random", RANDOM) + runs("oracle", BETTER) + runs("none", worse)
    found = {line["strategy"]: line for line in compare(made + runs("knn", mixed))}
    key = "heldout_forgetting_difference_p"
    raw = {name: found[name][key] for name in ("oracle", "none", "knn")}
    least = 2 * 0.5**5
    assert raw == pytest.approx({"oracle": least, "none": least, "knn": raw["knn"]})
    assert raw["knn"] > 2 * least
    corrected = {name: found[name][f"{key}_holm"] for name in raw}
    assert corrected == pytest.approx(
        {"oracle": 3 * least, "none": 3 * least, "knn": max(3 * least, raw["knn"])}
    )
    assert f"{key}_holm" not in found["random"]


def test_seeds_are_averaged_within_a_task_before_tasks_are_compared():
    made = runs("random", RANDOM, seeds=(0, 2)) + runs("oracle", BETTER, seeds=(0, 2))
    line = {line["strategy"]: line for line in compare(made)}["oracle"]
    assert (line["tasks"], line["seeds"]) == (5, 2)
    assert line["heldout_forgetting"] == pytest.approx(0.19)
    assert line["heldout_forgetting_difference"] == pytest.approx(-0.22)


def test_a_task_that_could_not_be_measured_is_left_out_of_the_difference():
    made = runs("random", RANDOM) + runs("oracle", (np.nan, *BETTER[1:]))
    line = {line["strategy"]: line for line in compare(made)}["oracle"]
    assert line["heldout_forgetting_difference"] == pytest.approx(-(0.2 + 0.3 + 0.4 + 0.1) / 4)


def test_the_order_of_the_runs_does_not_matter_but_for_the_order_of_strategies():
    made = runs("random", RANDOM, seeds=(0, 1)) + runs("oracle", BETTER, seeds=(0, 1))
    first = {line["strategy"]: line for line in compare(made)}
    second = {line["strategy"]: line for line in compare(made[::-1])}
    # The resampling of an interval goes by the tasks' places.
    keys = [key for key in first["oracle"] if not key.endswith(("_low", "_high"))]
    for key in keys:
        assert first["oracle"][key] == pytest.approx(second["oracle"][key], nan_ok=True)


def test_the_share_of_draws_that_are_random_in_effect_is_over_the_runs_that_drew():
    made = runs("none", RANDOM) + runs("random", RANDOM) + runs("domain", BETTER)
    for run in made[5:]:
        run["random_in_effect"] = run["strategy"] == "random" or run["task"] == "a"
    shares = {line["strategy"]: line["random_in_effect"] for line in compare(made)}
    assert np.isnan(shares["none"])
    assert (shares["random"], shares["domain"]) == (1.0, pytest.approx(0.2))


def test_shares_of_routed_examples_are_averaged_for_runs_that_have_them():
    runs = []
    for task, share in (("a", 0.0), ("b", 0.1), ("c", 0.2)):
        for strategy in ("random", "memory"):
            run = {"strategy": strategy, "task": task, "seed": 0}
            run |= {"heldout_forgetting": share, "eval_loss_after": 1.0}
            if strategy == "memory":
                run |= {"heldout_routed": share, "eval_routed": 1.0, "memory_bytes": 10}
            runs.append(run)
    random, memory = compare(runs)
    assert memory["heldout_routed"] == pytest.approx(0.1)
    assert memory["heldout_routed_low"] <= 0.1 <= memory["heldout_routed_high"]
    assert (memory["eval_routed"], memory["memory_bytes"]) == (1.0, 10)
    assert np.isnan(random["heldout_routed"])
    without = compare([run for run in runs if run["strategy"] == "random"])
    assert "heldout_routed" not in without[0]


def test_a_seed_without_any_rise_does_not_remove_its_task():
    made = []
    for strategy, rises in {"random": (0.4, 0.4), "oracle": (np.nan, 0.2)}.items():
        for task in TASKS:
            for seed, rise in enumerate(rises):
                record = {"strategy": strategy, "task": task, "seed": seed, "rise_mean": rise}
                made.append(record | {"heldout_forgetting": 0.1, "eval_loss_after": 1.0})
    made[-1]["rise_mean"] = np.nan
    lines = {line["strategy"]: line for line in compare(made)}
    assert lines["oracle"]["rise_mean"] == pytest.approx(0.2)
    assert lines["oracle"]["rise_mean_difference"] == pytest.approx(-0.2)
    assert lines["oracle"]["rise_mean_tasks"] == 4, "on the last task nothing rises"
    assert lines["random"]["rise_mean_tasks"] == 5
