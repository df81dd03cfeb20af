import numpy as np
import pytest
from scipy import stats

from lethe.analysis.rises import RunKey
from lethe.config.replay_settings import Replay
from lethe.config.task_table import Task
from lethe.replay.contrast_tests import compare_planned, paired_forgetting
from lethe.replay.planned_contrasts import (
    Contrast,
    decision_sentence,
    least_p,
    least_p_sentence,
    plan_contrasts,
    primary_run,
    tasks_needed,
)

TEXT = {"strategy": "random", "objective": "text", "dose": "mixed"}


def planned(**settings):
    contrasts = plan_contrasts(Replay(**settings))
    return [(c.question, c.run, c.reference) for c in contrasts]


def test_the_planned_comparisons_of_kl_replay_are_three():
    strategies = ["none", "random", "knn", "gaussian", "oracle"]
    variants = {"random-text": TEXT, "half": {"strategy": "random", "ratio": 0.5}}
    assert planned(strategies=strategies, variants=variants) == [
        ("replay", "random-text", "none"),
        ("default", "gaussian", "random-text"),
        ("selection", "gaussian", "random"),
    ]


def test_random_text_replay_is_the_papers_own_before_other_doses_of_text():
    heavy = {"strategy": "random", "objective": "text"}
    other_ratio = TEXT | {"ratio": 0.5}
    variants = {"heavy": heavy, "other-ratio": other_ratio, "random-text": TEXT}
    assert planned(strategies=["none", "random", "gaussian"], variants=variants)[:2] == [
        ("replay", "random-text", "none"),
        ("default", "gaussian", "random-text"),
    ]


def test_the_random_run_of_the_same_settings_is_found_beside_settings_of_the_draw():
    half = {"strategy": "importance", "importance_correction": 0.5}
    settings = {"strategies": ["random"], "variants": {"half": half}, "primary": "half"}
    assert planned(**settings)[-1] == ("selection", "half", "random")


def test_text_replay_asks_no_question_twice():
    paper = {"objective": "text", "dose": "mixed"}
    assert planned(strategies=["none", "random", "mf", "oracle"], **paper) == [
        ("replay", "random", "none"),
        ("selection", "mf", "random"),
    ]


def test_a_primary_variant_is_compared_with_the_random_run_of_its_own_settings():
    variants = {
        "strong": {"strategy": "gaussian", "weight": 16},
        "strong-random": {"strategy": "random", "weight": 16},
    }
    settings = {"strategies": ["random", "gaussian"], "variants": variants, "primary": "strong"}
    assert planned(**settings) == [
        ("default", "strong", "random"),
        ("selection", "strong", "strong-random"),
    ]
    del variants["strong-random"]
    assert planned(**settings) == [("default", "strong", "random")]


def test_without_a_predicting_strategy_only_replay_itself_is_tested():
    assert primary_run(Replay(strategies=["random", "oracle"])) is None
    assert planned(strategies=["random", "none", "oracle"]) == [("replay", "random", "none")]
    assert planned(strategies=["random"]) == []


@pytest.mark.parametrize(("tasks", "contrasts"), [(3, 1), (5, 1), (8, 3), (12, 2)])
def test_the_least_p_is_what_the_test_gives_if_every_task_agrees(tasks, contrasts):
    p = stats.wilcoxon(np.arange(1, tasks + 1)).pvalue
    assert least_p(tasks, contrasts) == pytest.approx(min(1, contrasts * p))


def test_the_number_of_tasks_that_a_decision_needs():
    assert [tasks_needed(contrasts) for contrasts in (1, 2, 3, 5)] == [6, 7, 7, 8]
    assert np.isnan(least_p(2, 1))
    for contrasts in range(1, 6):
        needed = tasks_needed(contrasts)
        assert least_p(needed, contrasts) <= 0.05 < least_p(needed - 1, contrasts)


def test_the_sentence_names_the_tasks_that_are_needed():
    assert "no test is possible with 1 test task; 3 planned comparisons need at least 7" in (
        least_p_sentence(1, 3)
    )
    short = least_p_sentence(5, 3)
    assert "5 test tasks can reach p = 0.19 at best" in short
    assert "at least 7 tasks" in short
    enough = least_p_sentence(29, 3)
    assert "p = 1.1e-08" in enough
    assert "at least 7 tasks" in enough


def test_the_sentence_of_an_experiment_advises_to_test_all_tasks_if_that_helps():
    tasks = {}
    for number in range(12):
        name = f"t{number}"
        tasks[name] = Task(name=name, group="g", split="test" if number < 4 else "train")
    few = Replay(strategies=["none", "random", "gaussian"])
    assert "4 test tasks can reach p = 0.25" in decision_sentence(few, tasks)
    assert decision_sentence(few, tasks).endswith("all makes all 12 tasks test tasks)")
    every = Replay(strategies=["none", "random", "gaussian"], tasks="all")
    assert decision_sentence(every, tasks).startswith("replay: 12 test tasks can reach p = 0.00")
    assert "replay.tasks" not in decision_sentence(every, tasks)
    assert decision_sentence(Replay(strategies=["random"]), tasks) == ""


def runs_of(values, **others):
    runs = []
    for strategy, by_task in values.items():
        for number, value in enumerate(by_task):
            run = {"strategy": strategy, "task": f"t{number}", "seed": 0}
            run["heldout_forgetting"] = value
            run["eval_loss_after"] = 1.0 + (0.5 if (strategy, number) == ("gaussian", 2) else 0)
            runs.append(run | others)
    return runs


CONTRASTS = [Contrast("replay", "random", "none"), Contrast("selection", "gaussian", "random")]
RANDOM = np.array([0.5, 0.4, 0.3, 0.6, 0.2, 0.7, 0.35])
VALUES = {
    "none": RANDOM + 0.1 * np.arange(1, 8),
    "random": RANDOM,
    "gaussian": RANDOM - 0.01 * np.array([1, -2, 3, 4, 5, 6, 7]),
    "oracle": RANDOM - 0.02 * np.arange(1, 8),
}


def test_only_planned_comparisons_are_corrected_for():
    records = compare_planned(runs_of(VALUES), CONTRASTS)
    first, second = (r for r in records if r["measure"] == "heldout_forgetting")
    assert (first["status"], first["question"]) == ("planned", "replay")
    assert first["p"] == pytest.approx(2**-6)
    assert first["p_holm"] == pytest.approx(2 * 2**-6)
    assert second["p_holm"] == pytest.approx(max(first["p_holm"], second["p"]))
    assert first["least_p"] == pytest.approx(2 * 2**-6)
    assert (first["tasks_lower"], second["tasks_lower"]) == (7, 6)
    assert first["difference"] == pytest.approx(-0.4)
    assert first["mean"] == pytest.approx(RANDOM.mean())
    assert first["low"] < -0.4 < first["high"]


def test_means_are_over_the_tasks_that_both_runs_measured():
    values = {name: of_run.copy() for name, of_run in VALUES.items()}
    values["none"][6] = np.nan
    record, *_ = compare_planned(runs_of(values), CONTRASTS)
    assert record["tasks"] == 6
    assert record["mean"] - record["reference_mean"] == pytest.approx(record["difference"])


def test_the_new_task_stands_beside_forgetting_with_the_task_that_loses_most():
    records = compare_planned(runs_of(VALUES), CONTRASTS)
    new = [r for r in records if r["measure"] == "eval_loss_after"][1]
    assert new["status"] == "secondary"
    assert (new["largest_difference"], new["largest_difference_task"]) == (0.5, "t2")
    assert "drift" not in {r["measure"] for r in records}
    described = runs_of(VALUES, drift=0.1)
    assert "drift" in {r["measure"] for r in compare_planned(described, CONTRASTS)}


def test_pairs_are_runs_of_the_same_task_and_seed():
    forgetting = {}
    for strategy, shift in {"random": 0.0, "gaussian": -1.0}.items():
        for task in "ab":
            for seed in (0, 3):
                values = np.array([1.0, 2.0]) + seed + shift
                forgetting[RunKey(strategy, task, seed)] = values
    del forgetting[RunKey("random", "b", 3)]
    differences = paired_forgetting(forgetting, run="gaussian", reference="random")
    assert differences.shape == (2, 2, 2)
    assert np.isnan(differences[1, 1]).all()
    assert (differences[0] == -1).all()


def test_an_interval_over_tasks_and_examples_stands_beside_that_over_tasks():
    rng = np.random.default_rng(0)
    forgetting = {}
    for strategy in ("none", "random", "gaussian"):
        for number, mean in enumerate(VALUES[strategy]):
            forgetting[RunKey(strategy, f"t{number}", 0)] = mean + 0.1 * rng.normal(size=40)
    records = compare_planned(runs_of(VALUES), CONTRASTS, forgetting)
    planned_records = [r for r in records if r["status"] == "planned"]
    for record in planned_records:
        assert record["two_level_low"] < record["difference"] < record["two_level_high"]
    assert not any("two_level_low" in r for r in records if r["status"] == "secondary")
