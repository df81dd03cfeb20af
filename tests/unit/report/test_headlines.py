import numpy as np
import pandas as pd
import pytest
from helpers import findings as tiny_findings

from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix
from lethe.replay.comparison import compare
from lethe.report import headlines
from lethe.report.findings import Findings


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


@pytest.fixture
def sentence(findings):
    """The sentence on matrix factorisation for an interval, a corrected p and a number of tasks."""

    def make(low, high, p, tasks=8):
        table = findings.comparisons["one"].copy()
        table["heldout_forgetting_difference"] = (low + high) / 2
        table["heldout_forgetting_difference_low"] = low
        table["heldout_forgetting_difference_high"] = high
        table["heldout_forgetting_difference_p_holm"] = p
        table["tasks"] = tasks
        return headlines.replay_headlines(table, "nats")[1]

    return make


def test_the_headline_claims_no_more_than_the_interval(sentence):
    assert sentence(-0.2, -0.1, 0.04) == (
        "Matrix factorisation replay: 0.100 vs 0.200 nats for random (-75 %; difference -0.150 "
        "[-0.200, -0.100]; 8 test tasks; significant, p = .04)."
    )
    assert "+75 %" in sentence(0.1, 0.2, 0.04) and "; significant" in sentence(0.1, 0.2, 0.04)
    assert "not significant" in sentence(-0.1, 0.2, 0.04)


@pytest.mark.parametrize("ends", [(-0.2, -0.1), (0.1, 0.2)])
@pytest.mark.parametrize("p, text", [(0.05, "p = .05"), (0.07, "p = .07")])
def test_the_headline_claims_no_more_than_the_corrected_p(sentence, ends, p, text):
    assert f"; not significant, {text})." in sentence(*ends, p)


def test_the_headline_of_two_tasks_which_have_no_p_claims_nothing(sentence):
    assert sentence(-0.2, -0.1, np.nan, tasks=2) == (
        "Held-out forgetting. Matrix factorisation replay: 0.100 vs 0.200 nats for random. "
        "No test possible: only 2 test tasks (at least 7 needed)."
    )
    # Equal on every task has no p either, but not for lack of tasks.
    assert "the same on each of 8 test tasks" in sentence(0, 0, np.nan)


def test_an_effect_on_too_few_tasks_for_a_test_is_not_called_significant(sentence):
    text = sentence(-0.2, -0.1, 0.03, tasks=6)
    assert "No test possible: only 6 test tasks (at least 7 needed)." in text
    assert "significant" not in text


def test_random_replay_against_no_replay_is_the_first_replay_headline():
    runs = []
    for strategy, values in {"none": 0.3, "random": 0.2, "mf": 0.19}.items():
        for task in range(9):
            forgetting = values + 0.001 * task * (strategy == "none")
            runs.append(
                {
                    "strategy": strategy,
                    "task": f"t{task}",
                    "seed": 0,
                    "heldout_forgetting": forgetting,
                    "eval_loss_after": 1.0,
                }
            )
    table = pd.DataFrame(compare(runs))
    first, second = headlines.replay_headlines(table, "nats")
    assert first.startswith("Random replay: 0.200 vs 0.304 nats without replay (-34 %; difference")
    assert "9 test tasks; significant, p = .00" in first
    assert second.startswith("Matrix factorisation replay: 0.190 vs 0.200 nats for random (-5 %;")


@pytest.mark.parametrize(("comparisons", "tasks"), [(1, 6), (2, 7), (4, 8), (5, 8), (7, 9)])
def test_the_least_number_of_tasks_is_the_first_that_can_be_significant(comparisons, tasks):
    from scipy import stats

    assert headlines.tasks_needed(comparisons) == tasks
    assert comparisons * stats.wilcoxon(np.arange(1.0, tasks + 1)).pvalue < 0.05
    assert comparisons * stats.wilcoxon(np.arange(1.0, tasks)).pvalue >= 0.05


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0004, "p < .001"),
        (0.0078125, "p = .0078"),
        (0.12, "p = .12"),
        (0.0499, "p = .0499"),
        (0.049999, "p < .05"),
        (1.0, "p = 1"),
    ],
)
def test_p_is_written_as_in_a_paper_and_never_rounded_across_the_level(p, text):
    assert headlines.format_p(p) == text


def matrix(mean, spread, tasks):
    rng = np.random.default_rng(0)
    values = mean + spread * rng.normal(size=(tasks, 1)) + np.zeros((tasks, 6))
    return Matrix(values, [f"t{i}" for i in range(tasks)], [f"e{i}" for i in range(6)])


def test_a_rise_in_loss_is_stated_with_its_size_in_words():
    text = headlines.forgetting_headline(matrix(0.228, 1e-9, 9), binary=False)
    assert text.startswith(
        "Upstream loss rose by 0.228 nats [0.228, 0.228] on average, which makes each token 20 % "
        "less probable. Mean over 9 tasks and 6 upstream examples; by task from"
    )


def test_a_fall_in_loss_is_not_called_forgetting():
    text = headlines.forgetting_headline(matrix(-0.026, 1e-9, 9), binary=False)
    assert (
        "fell by 0.026 nats [0.026, 0.026]" in text and "nothing was forgotten on average" in text
    )


@pytest.mark.parametrize(("spread", "tasks"), [(1e-9, 4), (1.0, 9)])
def test_few_tasks_or_an_interval_around_zero_name_the_quantity_only(spread, tasks):
    text = headlines.forgetting_headline(matrix(0.02, spread, tasks), binary=False)
    assert text.startswith("Mean change of the upstream loss: ")
    assert "rose" not in text and "fell" not in text


def test_lost_answers_are_a_percentage():
    z = Matrix(np.array([[1.0, 0], [0, 0], [np.nan, np.nan]]), ["a", "b", "c"], ["x", "y"])
    text = headlines.forgetting_headline(z, binary=True)
    assert text.startswith("Fine-tuning lost 25.0 % of the base model's right answers on average.")
    assert "Mean over 2 tasks" in text


def test_planned_comparisons_come_first_and_the_others_are_exploratory(findings):
    planned = [tiny_findings.contrast(run="random", reference="none"), tiny_findings.contrast()]
    planned.append(tiny_findings.contrast(measure="drift", status="secondary"))
    sentences = headlines.replay_headlines(
        findings.comparisons["one"].assign(tasks=8), "nats", pd.DataFrame(planned)
    )
    assert sentences[0].startswith("Random replay: 0.047 vs 0.054 nats without replay (-13 %;")
    assert sentences[1] == (
        "Gaussian kl replay: 0.047 vs 0.054 nats for random kl (-13 %; difference -0.007 "
        "[-0.009, -0.005]; lower on 27 of 29 test tasks; significant, p < .001)."
    )
    others = sentences[2:]
    assert len(others) == 2 and all(line.startswith("Exploratory: ") for line in others)


def test_planned_comparisons_that_cannot_be_decided_are_not_called_significant(findings):
    planned = pd.DataFrame(
        [tiny_findings.contrast(tasks=5, tasks_lower=5, p=0.0625, p_holm=0.0625)]
    )
    sentence = headlines.replay_headlines(findings.comparisons["one"], "nats", planned)[0]
    assert "No test possible: only 5 test tasks (at least 6 needed)." in sentence


def test_means_and_the_most_forgotten_tenth_lead_the_predictions():
    metrics = {
        "rmse": 0.08,
        "top_10_percent": 0.52,
        "task_mean_error": 0.012,
        "task_mean_coverage_90": 0.875,
        "task_mean_width_90": 0.047,
    }
    lines = []
    for metric, value in metrics.items():
        head = {"seed": "all", "split": "in_domain", "probes": "random", "method": "gaussian"}
        lines.append(head | {"k": 30, "metric": metric, "value": value, "low": 0.0, "high": 0.1})
    findings = Findings(
        tasks={"t": Task(name="t", group="g", split="test")},
        matrices={"one": Matrix(np.array([[0.3]]), ["t"], ["e"])},
        curves={},
        completions={"one": pd.DataFrame(lines)},
    )
    mean, tenth, error = headlines.completion_headlines("one", findings)
    assert mean == (
        "Mean forgetting of an unseen task, predicted from 30 probes: off by 0.012 nats [0.000, "
        "0.100] on average (1 test task). The 90 % intervals are 0.047 nats wide and contain 88 % "
        "of the means."
    )
    assert tenth.startswith("The predicted tenth holds 52 % of the examples")
    assert error.startswith("Error of forgetting predicted from 30 probes")
    # A table of an earlier version has no lines of means.
    findings.completions["one"] = pd.DataFrame(lines[:2])
    assert len(headlines.completion_headlines("one", findings)) == 1


def test_a_mean_that_is_not_above_the_noise_is_named_and_not_called_forgetting():
    z = Matrix(np.full((6, 4), 0.02, np.float32), list("abcdef"), list("wxyz"))
    noise = {"sigma": {"training": 0.03}}
    text = headlines.forgetting_effect(z, binary=False, noise=noise)
    assert "+0.020 nats, which is not above the noise of repeated fine-tunes (0.030" in text
    assert "rose" not in text
    noise["sigma"]["training"] = 0.01
    for value in (noise, {"sigma": {"training": None}}, None):
        assert "rose by 0.020" in headlines.forgetting_effect(z, binary=False, noise=value)


def test_the_rank_is_tested_against_shuffled_rows_where_noise_was_measured(findings):
    curve = findings.curves["one"]
    assert "shuffled" not in headlines.rank_headline(curve, all_tasks=4)
    noise = {"rank_above": {"shuffled_rows": 3}}
    text = headlines.rank_headline(curve, all_tasks=4, noise=noise)
    assert text.endswith("Against shuffled rows, 3 components of Z can be told from chance.")


def test_a_rank_curve_of_some_of_the_tasks_says_so(findings):
    curve = findings.curves["one"].assign(tasks=3)
    assert "of Z (3 of 4 tasks; the others" in headlines.rank_headline(curve, all_tasks=4)
    assert "of Z (3 tasks)" in headlines.rank_headline(curve, all_tasks=3)
