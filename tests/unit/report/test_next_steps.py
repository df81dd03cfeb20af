from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import findings as tiny_findings

from lethe.report.next_steps import find_worst_tasks, suggest_steps


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"), models=("one",))


def steps(findings, *contrasts) -> str:
    table = pd.DataFrame(contrasts or [tiny_findings.contrast()])
    return " ".join(suggest_steps(replace(findings, contrasts={"one": table})))


def test_the_default_run_is_suggested_if_it_is_surely_better(findings):
    text = steps(findings, tiny_findings.contrast(question="default", reference="random_kl"))
    assert "one: replay with gaussian kl, which forgets less than random kl." in text


def test_the_suggestion_says_what_random_examples_with_the_same_loss_would_do(findings):
    default = tiny_findings.contrast(question="default", reference="random_text")
    text = steps(findings, default, tiny_findings.contrast())
    assert "random kl needs no trial fine-tune; it differs by +0.007 nats in forgetting." in text
    new_task = tiny_findings.contrast(measure="eval_loss_after", difference=0.038)
    text = steps(findings, default, tiny_findings.contrast(), new_task)
    assert "by +0.007 nats in forgetting and -0.038 nats in new-task loss." in text


def test_random_replay_is_suggested_if_no_other_run_is_surely_better(findings):
    default = tiny_findings.contrast(question="default", p_holm=0.2)
    replay = tiny_findings.contrast(question="replay", run="random", reference="none")
    assert "one: replay with random. It forgets less than no replay" in steps(
        findings, default, replay
    )


def test_nothing_is_suggested_without_a_significant_test(findings):
    replay = tiny_findings.contrast(question="replay", p_holm=0.2)
    for text in (steps(findings, replay), " ".join(suggest_steps(findings))):
        assert "no replay run is shown to prevent forgetting" in text


def test_probes_are_suggested_with_the_error_of_the_mean(findings):
    table = pd.DataFrame([*tiny_findings.completion(), *tiny_findings.means(0.02)])
    text = " ".join(suggest_steps(replace(findings, completions={"one": table})))
    assert "measure 1 probes of it" not in text
    assert "an error of 0.020 nats on average" in text
    assert "probe" not in " ".join(suggest_steps(findings))


def test_an_experiment_without_replay_is_advised_to_measure_it(findings):
    text = " ".join(suggest_steps(replace(findings, comparisons={})))
    assert (
        text == "Add a section replay to the experiment to measure what prevents this forgetting."
    )


def test_the_worst_task_has_the_largest_mean(findings):
    [worst] = find_worst_tasks(findings)
    z = findings.matrices["one"]
    means = dict(zip(z.tasks, [row[~pd.isna(row)].mean() for row in z.values], strict=True))
    assert worst.task == max(means, key=means.get)


def test_a_task_without_a_value_is_not_the_worst(findings):
    z = findings.matrices["one"]
    values = -np.abs(z.values)
    values[-1] = np.nan
    changed = replace(findings, matrices={"one": replace(z, values=values)})
    (worst,) = find_worst_tasks(changed)
    assert worst.task != z.tasks[-1] and worst.forgetting < 0
