from dataclasses import replace

import pandas as pd
import pytest
from helpers import findings as tiny_findings

from lethe.config.task_table import Task
from lethe.replay.contrast_tests import compare_planned
from lethe.replay.planned_contrasts import Contrast
from lethe.report.verdict import Verdict, describe_origin, make_verdicts

CONTRASTS = [
    Contrast("replay", "random-text", "none"),
    Contrast("default", "gaussian", "random-text"),
    Contrast("selection", "gaussian", "random"),
]
REPLAY = {
    "strategies": ["none", "random", "gaussian"],
    "ratio": 0.125,
    "objective": "kl",
    "variants": {"random-text": {"strategy": "random", "objective": "text", "dose": "mixed"}},
}
SETTINGS = {"replay": REPLAY}
FORGETTING = {"none": 0.4, "random-text": 0.2, "random": 0.108, "gaussian": 0.1}


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


def verdict(findings, forgetting: dict[str, float], tasks: int = 8, drift: bool = False) -> str:
    """The verdict on the model `one` for these means of held-out forgetting by run."""
    records = []
    for run, mean in forgetting.items():
        for number in range(tasks):
            record = {"strategy": run, "task": f"task-{number}", "seed": 0}
            record["heldout_forgetting"] = mean * (1 + 0.01 * (number - (tasks - 1) / 2))
            if drift:
                record["drift"] = abs(record["heldout_forgetting"])
            record["eval_loss_after"] = 2.0 + (0.25 if run == "gaussian" and number == 3 else 0)
            record["training_seconds"] = 2.0 if run == "none" else 3.0 + number % 2
            records.append(record)
    contrasts = pd.DataFrame(compare_planned(records, CONTRASTS))
    changed = replace(findings, contrasts={"one": contrasts}, runs={"one": pd.DataFrame(records)})
    return all_sentences(make_verdicts(changed, SETTINGS)["one"])


def all_sentences(verdict: Verdict) -> str:
    return " ".join(verdict.summary + verdict.details)


def test_the_verdict_says_what_replay_takes_away_and_at_which_price(findings):
    text = verdict(findings, FORGETTING)
    assert (
        "Replaying 1 example per 8 new ones takes away 75 % with Gaussian (KL to the base model on "
        "examples predicted to be forgotten), 73 % with random (KL to the base model on random "
        "examples) and 50 % with random-text (the text of random examples) of the 0.400 nats that "
        "the held-out examples lose without replay (8 tasks)."
    ) in text
    assert "The difference between Gaussian and random-text is -0.100 nats [-0.10" in text
    assert "end at a loss of 2.031, without replay at 2.000 (+0.031 [+0.000, +" in text
    assert ", and with random-text at 2.000. Training with Gaussian took 1.73 [1.5" in text
    assert "] times as long as without replay." in text
    assert "The loss on the new tasks differs by +0.031 nats" in text
    assert "on the least favourable task, task-3, by +0.250." in text
    assert "by prediction (Gaussian) instead of at random (random) changes held-out forg" in text


def test_a_difference_that_could_be_chance_is_called_undecided(findings):
    text = verdict(findings, FORGETTING | {"gaussian": 0.2})
    assert "Whether Gaussian and random-text differ is not decided: +0.000 nats" in text


def test_a_loss_below_the_base_models_is_no_success_by_itself(findings):
    text = verdict(findings, FORGETTING | {"random-text": -0.1}, drift=True)
    assert "and more than all with random-text (the text of random examples)" in text
    assert "is a change, too: the mean absolute change is 0.100 nats with Gaussian, " in text
    assert "0.100 with random-text and 0.400 without replay." in text
    assert "is a change, too" not in verdict(findings, FORGETTING, drift=True)


def test_too_few_tasks_carry_no_claim(findings):
    text = verdict(findings, FORGETTING, tasks=3)
    assert "tested on 3 tasks only, which is too few for a claim" in text
    assert "takes away" not in text


def test_without_forgetting_there_is_nothing_to_prevent(findings):
    text = verdict(findings, dict.fromkeys(FORGETTING, -0.1))
    assert "were not forgotten, so there was nothing to prevent" in text


def test_the_verdict_says_how_much_of_the_damage_is_predicted(findings):
    line = {"split": "in_domain", "method": "gaussian", "k": 30, "probes": "random", "seed": "all"}
    line |= {"metric": "top_10_percent", "value": 0.53, "low": 0.37, "high": 0.69}
    other = line | {"split": "out_of_domain", "value": 0.1}
    means = line | {"method": "column_mean", "value": 0.46}
    tasks = {name: Task(name=name, group="g", split="test") for name in "abcde"}
    changed = replace(
        findings, completions={"one": pd.DataFrame([line, other, means])}, tasks=tasks
    )
    changed = replace(changed, matrices={"one": findings.matrices["one"]})
    text = all_sentences(make_verdicts(changed, {"replay": None})["one"])
    assert "From 30 probes of a new task, the prediction finds 53 % [37, 69] of the tenth" in text
    assert "damages most; their means over other tasks find 46 % (chance: 10 %)." in text


def test_without_planned_comparisons_the_verdict_is_about_forgetting(findings):
    verdicts = make_verdicts(findings, {"replay": None})
    assert set(verdicts) == set(findings.matrices)
    for model in verdicts:
        [sentence] = verdicts[model].summary
        assert "pstream loss" in sentence
        assert verdicts[model].details == []


def test_the_page_says_what_the_results_were_made_by(findings):
    versions = {"lethe": "1.2.3", "commit": "0123456789abcdef", "torch": "2.0", "device": "cuda"}
    rows = pd.DataFrame({"training_seconds": [60.0, 30.0], "scoring_seconds": [20.0, 10.0]})
    days = rows.assign(date=["2026-11-30", "2026-11-29"])
    one_day = rows.assign(date=["2026-11-30", None])
    measured = replace(
        findings, versions={"one": versions, "old": {}}, summaries={"one": rows}, runs={}
    )
    origin = "lethe 1.2.3 (commit 0123456789), torch 2.0, device cuda, 2 fine-tunes in 2.0 minutes"
    assert describe_origin(measured, {}) == {"one": origin}
    measured = replace(measured, summaries={"one": days})
    assert describe_origin(measured, {}) == {"one": f"{origin}, from 2026-11-29 to 2026-11-30"}
    measured = replace(measured, summaries={"one": one_day})
    assert describe_origin(measured, {}) == {"one": f"{origin}, measured on 2026-11-30"}


def test_a_model_that_was_pretrained_by_the_experiment_says_so(findings):
    measured = replace(findings, versions={"one": {"lethe": "1"}}, summaries={}, runs={})
    settings = {"models": {"one": {"source": "scratch", "pretraining": {"steps": 500}}}}
    assert describe_origin(measured, settings) == {"one": "lethe 1, pretrained here (500 steps)"}
    settings = {"models": {"one": {"source": "hub"}}}
    assert describe_origin(measured, settings) == {"one": "lethe 1"}


def test_a_base_model_that_knows_nothing_of_the_examples_is_named(findings):
    def of_loss(loss, settings):
        changed = replace(findings, base_losses={"one": {"a": loss, "b": loss}})
        return all_sentences(make_verdicts(changed, SETTINGS | settings)["one"])

    scratch = {"models": {"one": {"pretraining": {"vocabulary": 1000}}}}
    assert "knows nothing of the upstream examples: its loss of 7.00 nats" in of_loss(7.0, scratch)
    assert "knows nothing" not in of_loss(6.0, scratch)
    assert "knows nothing" not in of_loss(7.0, {})
    assert "knows nothing" in of_loss(10.5, {"models": {"one": {"pretraining": None}}})


def test_a_run_that_forgets_more_than_no_replay_takes_nothing_away(findings):
    text = verdict(findings, FORGETTING | {"gaussian": 0.48})
    assert "takes away 73 % with random (KL" in text
    assert "examples predicted to be forgotten), they lose 20 % more than without replay." in text
    assert "-20 %" not in text


def test_the_dose_is_that_of_the_runs_and_not_of_the_section(findings, monkeypatch):
    of_a_quarter = dict.fromkeys(("none", "random", "random-text"), 0.25)
    variants = {name: run | {"ratio": 0.25} for name, run in REPLAY["variants"].items()}
    changed = REPLAY | {"variants": variants}
    monkeypatch.setitem(SETTINGS, "replay", changed)
    assert verdict(findings, FORGETTING).count("Replay takes away 75 %") == 1
    monkeypatch.setitem(SETTINGS, "replay", changed | {"ratio": 0.25})
    assert of_a_quarter and "Replaying 1 example per 4 new ones" in verdict(findings, FORGETTING)


def test_lost_answers_are_not_called_nats(findings):
    z = findings.matrices["one"]
    lost = replace(z, values=(z.values > 0).astype(float))
    binary = replace(findings, matrices=dict.fromkeys(findings.matrices, lost))
    assert binary.binary
    text = verdict(binary, FORGETTING)
    assert "of the 40.0 % of the right answers that the held-out examples lose" in text
    assert "is -10.0 percentage points [" in text
    assert "held-out forgetting by -0.8 percentage points" in text
    assert "new-task loss by +0.031 nats" in text


def test_a_run_without_replay_is_not_said_to_replay(findings, monkeypatch):
    near = {"l2": {"strategy": "none", "recipe": {"l2": 1.0}}}
    shares = {"wise": {"strategy": "random", "ratio": 0.25, "interpolate": [0.3, 0.7]}}
    variants = REPLAY["variants"] | near | shares
    monkeypatch.setitem(SETTINGS, "replay", REPLAY | {"variants": variants})

    def text_of(run):
        contrasts = [Contrast("replay", "random-text", "none"), Contrast("default", run, "random")]
        monkeypatch.setitem(globals(), "CONTRASTS", contrasts)
        return verdict(findings, FORGETTING | {run: 0.1})

    assert (
        "The change of the training takes away 75 % with l2 (no replay; changes of the recipe: l2 "
        "1) and"
    ) in text_of("l2")
    text = text_of("wise-0.3")
    assert "Replay takes away 75 % with wise-0.3 (KL to the base model on random examples; " in text
    assert "afterwards the weights are averaged with those of the base model) and" in text


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("gaussian", ("by prediction (Gaussian)", "It needs a trial fine-tune.")),
        ("column_mean", ("by prediction (column mean)", "It needs no trial fine-tune.")),
        ("online", ("by prediction (online)", "It probes the model during the training.")),
        ("oracle", ("by their true forgetting (oracle)", "It needs a finished fine-tune")),
        ("balanced", ("the replayed examples (balanced) instead of at random", "")),
    ],
)
def test_the_verdict_says_how_examples_are_chosen_and_what_it_needs(
    findings, monkeypatch, run, words
):
    strategies = list(dict.fromkeys([*REPLAY["strategies"], run]))
    monkeypatch.setitem(SETTINGS, "replay", REPLAY | {"strategies": strategies})
    contrasts = [Contrast("selection", run, "random")]
    monkeypatch.setitem(globals(), "CONTRASTS", contrasts)
    text = verdict(findings, FORGETTING | {run: 0.1})
    assert all(part in text for part in words)
    if run == "balanced":
        assert "trial" not in text and "prediction" not in text


def test_a_fine_tune_counts_once_for_its_shares_and_a_copy_not_at_all(findings):
    line = {"task": "a", "seed": 0, "training_seconds": 60.0}
    shares = [line | {"strategy": f"wise-{share}", "variant": "wise"} for share in (0.3, 0.7)]
    copied = line | {"strategy": "none", "copied": True}
    table = pd.DataFrame([copied, *shares, line | {"strategy": "random"}])
    measured = replace(
        findings, versions={"one": {"lethe": "1"}}, summaries={}, runs={"one": table}
    )
    assert describe_origin(measured, {}) == {"one": "lethe 1, 2 replay runs in 2.0 minutes"}
