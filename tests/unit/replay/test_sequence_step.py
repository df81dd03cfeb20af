from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file

from lethe.config.model_settings import LoRA, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.engine import models, objectives
from lethe.engine.checkpoints import read_weights, write_weights
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.forgetting import Job, base_losses
from lethe.measure.multitask import MultitaskPart, measure_multitask
from lethe.replay import sequence_step
from lethe.replay.runs import ChosenReplay
from lethe.replay.sequence_step import (
    EarlierExamples,
    SequenceStep,
    recipe_with_epochs,
    run_step,
)
from lethe.replay.strategies import Choice

UPSTREAM = tiny.upstream(16)
MIX = {"ratio": 0.25, "temperature": 0.1, "objective": "text", "dose": "mixed"}
TRAIN = {"a": tiny.pairs(20, seed=1), "b": tiny.pairs(20, seed=3)}
EVALUATION = {"a": tiny.pairs(6, seed=2), "b": tiny.pairs(6, seed=4)}


@pytest.fixture(scope="module")
def job(model_folders):
    card, scoring = model_folders["olmo"], Scoring(max_tokens=24, tokens_per_batch=4096)
    model, tokenizer = models.load(card)
    base = base_losses(Reader(model, tokenizer, scoring), UPSTREAM, {"model": card})
    recipe = Recipe(steps=4, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32)
    return Job(card, base, TRAIN["a"], EVALUATION["a"], recipe, scoring)


def settings(strategy="none", **changes):
    return Replay(strategies=list({"random": 0, strategy: 0}), **MIX | changes).resolve(strategy)


def step(job, *tasks, start=None, strategy="none", earlier=0.0, **changes):
    of_task = replace(job, train=TRAIN[tasks[-1]], evaluation=EVALUATION[tasks[-1]], start=start)
    return run_step(
        of_task,
        UPSTREAM,
        settings(strategy, **changes),
        step=SequenceStep(order="o", run="r", seed=0, tasks=list(tasks), earlier=earlier),
        examples=EarlierExamples(
            evaluation={task: EVALUATION[task] for task in tasks[:-1]},
            training={task: TRAIN[task] for task in tasks[:-1]},
        ),
    )


@pytest.fixture
def weights(job, tmp_path):
    """The weights that a first step on task a hands on."""
    model, _ = step(job, "a")
    path = tmp_path / "step1-a.safetensors"
    write_weights(path, model)
    return path


def test_the_first_step_without_replay_is_the_ordinary_row_of_its_task(job):
    _, row = step(job, "a")
    *_, ordinary = job.run(UPSTREAM)
    assert np.array_equal(row.loss_after, ordinary.loss_after)
    assert row.about["task_losses"] == {"a": ordinary.about["eval_loss_after"]}


def test_a_step_starts_from_the_weights_before_and_is_compared_with_the_base(job, weights):
    _, first = step(job, "a")
    _, second = step(job, "a", "b", start=weights)
    *_, alone = replace(job, train=TRAIN["b"], evaluation=EVALUATION["b"]).run(UPSTREAM)
    assert np.array_equal(second.loss_before, job.base.loss_before)
    assert not np.array_equal(second.loss_after, alone.loss_after)
    assert second.about["eval_loss_before"] != alone.about["eval_loss_before"]
    assert list(second.about["task_losses"]) == ["a", "b"]
    assert second.about["task_losses"]["b"] == second.about["eval_loss_after"]
    # Without training, the step measures the weights that it was handed.
    still = replace(job, recipe=job.recipe.model_copy(update={"lr": 0.0}))
    _, unchanged = step(still, "a", "b", start=weights)
    assert np.array_equal(unchanged.loss_after, first.loss_after)
    assert unchanged.about["task_losses"]["a"] == first.about["task_losses"]["a"]


def test_weights_are_handed_on_to_the_bit(job, weights):
    model, _ = step(job, "a")
    loaded, _ = models.load(job.card)
    read_weights(weights, loaded)
    for parameter, value in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, value)
    assert set(load_file(weights)) == {name for name, _ in model.named_parameters()}


def test_weights_of_another_model_or_a_broken_file_are_refused(model_folders, weights):
    other, _ = models.load(model_folders["gpt_neox"])
    with pytest.raises(LetheError, match=r"step1-a.safetensors: holds the weights of another"):
        read_weights(weights, other)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(LetheError, match=r"step1-a.safetensors: not readable as weights"):
        read_weights(weights, other)


def test_adapters_are_merged_before_they_are_handed_on(job, tmp_path):
    lora = Recipe(**job.recipe.model_dump() | {"method": "lora", "lora": LoRA(rank=2)})
    with_adapters = replace(job, recipe=lora)
    model, first = step(with_adapters, "a")
    path = tmp_path / "handed.safetensors"
    write_weights(path, model)
    still = replace(with_adapters, recipe=lora.model_copy(update={"lr": 0.0}))
    _, second = step(still, "a", "b", start=path)
    np.testing.assert_allclose(second.loss_after, first.loss_after, atol=1e-5)
    assert not np.array_equal(first.loss_after, first.loss_before)


@pytest.mark.parametrize("teacher", ["live", "stored"])
def test_kl_replay_keeps_the_answers_of_the_original_base_model(job, weights, teacher, monkeypatch):
    taught = []
    make = objectives.make_objective

    def spy(model, recipe, steps, replay, base=None):
        taught.append(base)
        return make(model, recipe, steps, replay, base)

    monkeypatch.setattr("lethe.engine.training.make_objective", spy)
    kl = {"strategy": "random", "objective": "kl", "dose": "token", "weight": 4, "teacher": teacher}
    step(job, "a", **kl)
    step(job, "a", "b", start=weights, **kl)
    original, _ = models.load(job.card)
    assert taught[0] is None
    for parameter, value in zip(taught[1].parameters(), original.parameters(), strict=True):
        assert torch.equal(parameter, value)


def test_replay_of_earlier_tasks_comes_in_its_share(job, weights, monkeypatch):
    terms = []
    run = Job.run

    def spy(self, upstream, replay=None, title=""):
        terms.append(replay)
        return run(self, upstream, replay, title)

    monkeypatch.setattr(Job, "run", spy)
    for earlier in (0.0, 0.5, 1.0):
        step(job, "a", "b", start=weights, strategy="random", earlier=earlier)
    counts = []
    for term in terms:
        ids = {example.example_id for example in term.examples}
        counts.append((len(ids), sum(name.startswith("task a ") for name in ids)))
    assert counts == [(4, 0), (4, 2), (4, 4)]
    # The first step has no earlier task.
    terms.clear()
    step(job, "a", strategy="random", earlier=0.5)
    step(job, "a", strategy="random", earlier=1.0)
    assert len(terms[0].examples) == 4 and terms[1] is None


def test_weights_stay_with_their_examples_among_those_of_earlier_tasks():
    weights = np.array([0.5, 1.5, 2.5])
    choice = Choice(np.arange(3), 3.0, 8, weights=weights)
    chosen = ChosenReplay(replayed=UPSTREAM[:3], choice=choice)
    run = settings("random", dose="token")
    term = sequence_step._joined_term(run, chosen, UPSTREAM[5:7], seed=0)
    ids = [example.example_id for example in term.examples]
    wanted = [example.example_id for example in [*UPSTREAM[:3], *UPSTREAM[5:7]]]
    assert dict(zip(ids, term.weights, strict=True)) == dict(
        zip(wanted, [*weights, 1, 1], strict=True)
    )
    assert ids != wanted


def test_a_run_that_replays_earlier_tasks_needs_their_examples(job, weights):
    with pytest.raises(LetheError, match="o, step 2: no training examples of 'a'"):
        sequence_step._choose_earlier(
            job,
            settings("random"),
            step=SequenceStep(order="o", run="r", seed=0, tasks=["a", "b"], earlier=0.5),
            training={},
        )


def test_a_step_keeps_its_checkpoint_apart_from_that_of_another_start(job, weights, tmp_path):
    stored = replace(job, unfinished=tmp_path)
    assert stored.made_from(UPSTREAM) != replace(stored, start=weights).made_from(UPSTREAM)


def test_epochs_of_a_task_become_steps():
    recipe = Recipe(steps=50, batch=8, max_epochs=2, group_steps={"g": 3})
    assert recipe_with_epochs(recipe, None, 400) is recipe
    changed = recipe_with_epochs(recipe, 3, 21)
    assert (changed.steps, changed.max_epochs, changed.group_steps) == (8, None, {})


def test_the_mixture_holds_each_task_as_often_as_a_sequence_trains_on_it(job, monkeypatch):
    trained = []
    run = Job.run

    def spy(self, upstream, replay=None, title=""):
        trained.append(self)
        return run(self, upstream, replay, title)

    monkeypatch.setattr(Job, "run", spy)
    tasks = {}
    for name, steps in {"a": 4, "b": 2}.items():
        tasks[name] = MultitaskPart(training=TRAIN[name], evaluation=EVALUATION[name], steps=steps)
    row = measure_multitask(job, UPSTREAM, tasks, seed=0, title="mixed")
    assert row.about["steps"] == 6
    counts = []
    for name in tasks:
        identities = {id(example) for example in TRAIN[name]}
        counts.append(sum(id(example) in identities for example in trained[0].train))
    assert counts == [16, 8]
    assert set(row.about["task_losses"]) == {"a", "b"}
    mean = np.mean(list(row.about["task_losses"].values()))
    assert mean == pytest.approx(row.about["eval_loss_after"], abs=1e-5)


def test_a_row_of_a_step_goes_through_a_file(job, weights, tmp_path):
    _, row = step(job, "a", "b", start=weights, strategy="random", earlier=0.5)
    rows.write_row(tmp_path / "row.parquet", row)
    again = rows.read_row(tmp_path / "row.parquet")
    assert again.about["order"] == "o" and again.about["step"] == 2
    assert again.about["replayed"] == 4 and again.about["replayed_upstream"] == 2
    assert again.about["task_losses"] == row.about["task_losses"]


def test_divergence_is_measured_from_the_original_base_model(job, weights):
    _, first = step(job, "a", heldout_kl=True)
    heldout = [example for example in UPSTREAM if example.split == "heldout"]
    model, tokenizer, _ = job.run(UPSTREAM)
    expected = np.nanmean(job.divergences(model, tokenizer, heldout, "t"))
    assert first.about["heldout_kl"] == pytest.approx(expected) and expected > 0
    # Without training, the second step measures the weights that it was handed.
    still = replace(job, recipe=job.recipe.model_copy(update={"lr": 0.0}))
    _, second = step(still, "a", "b", start=weights, heldout_kl=True)
    assert second.about["heldout_kl"] == pytest.approx(first.about["heldout_kl"])
    assert "heldout_kl" not in step(job, "a")[1].about


def test_the_mixture_measures_divergence_if_asked(job):
    tasks = {"a": MultitaskPart(training=TRAIN["a"], evaluation=EVALUATION["a"], steps=4)}
    row = measure_multitask(job, UPSTREAM, tasks, seed=0, heldout_kl=True, title="mixed")
    assert row.about["heldout_kl"] > 0
    assert "heldout_kl" not in measure_multitask(job, UPSTREAM, tasks, seed=0, title="m").about


def test_mir_takes_a_whole_virtual_step_where_weights_are_averaged_afterwards(job, monkeypatch):
    shares = []
    run = Job.run

    def spy(self, upstream, replay=None, title=""):
        shares.append((self.recipe.steps, self.share_of_change))
        return run(self, upstream, replay, title)

    monkeypatch.setattr(Job, "run", spy)
    averaged = {"variants": {"averaged": {"strategy": "mir", "interpolate": 0.3}}}
    run_step(
        job,
        UPSTREAM,
        Replay(strategies=["random"], **MIX | averaged).resolve("averaged"),
        step=SequenceStep(order="o", run="r", seed=0, tasks=["a"]),
        examples=EarlierExamples(),
    )
    assert shares == [(1, None), (4, 0.3)]
