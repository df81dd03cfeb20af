from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import Recipe, Scoring
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.measure.forgetting import Job, base_losses
from lethe.replay import runs
from lethe.replay.runs import replay, without_replay

UPSTREAM = tiny.upstream(16)
HELDOUT = [example.example_id for example in UPSTREAM if example.split == "heldout"]
MIX = {"ratio": 0.25, "temperature": 0.1, "accounting": "add"}


@pytest.fixture(scope="module")
def job(model_folders):
    card, scoring = model_folders["olmo"], Scoring(max_tokens=24, tokens_per_batch=4096)
    model, tokenizer = models.load(card)
    base = base_losses(Reader(model, tokenizer, scoring), UPSTREAM, {"model": card})
    recipe = Recipe(steps=4, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32)
    return Job(card, base, tiny.pairs(20, seed=1), tiny.pairs(6, seed=2), recipe, scoring)


def run(job, strategy="random", scores=None, seed=0, **changes):
    labels = {"strategy": strategy, "task": "t", "seed": seed}
    return replay(job, UPSTREAM, scores, **labels | MIX | changes)


def test_a_run_is_measured_on_the_held_out_examples_and_says_what_it_did(job):
    row = run(job)
    assert row.example_ids == HELDOUT
    expected = float(np.mean(row.forgetting))
    assert row.about["heldout_forgetting"] == pytest.approx(expected)
    assert (row.about["replayed"], row.about["replayed_distinct"]) == (4, 4)
    assert (row.about["steps"], row.about["strategy"], row.about["seed"]) == (5, "random", 0)


def test_swapped_replay_takes_no_more_steps(job):
    row = run(job, accounting="swap")
    assert (row.about["steps"], row.about["replayed"]) == (4, 4)


def test_replay_forgets_other_amounts_than_no_replay(job):
    assert (run(job).loss_after != run(job, "none").loss_after).any()


def test_without_replay_is_the_tasks_own_row_cut_to_the_held_out_examples(job):
    *_, whole = job.run(UPSTREAM)
    cut = without_replay(whole, UPSTREAM, "t")
    assert cut.example_ids == HELDOUT
    np.testing.assert_array_equal(cut.loss_after, whole.select(HELDOUT).loss_after)
    expected = float(np.mean(whole.select(HELDOUT).forgetting))
    assert cut.about["heldout_forgetting"] == pytest.approx(expected)
    assert (cut.about["strategy"], cut.about["seed"], cut.about["replayed"]) == ("none", 0, 0)
    assert cut.about["eval_loss_after"] == whole.about["eval_loss_after"]
    # Measured anew it is the same fine-tune, up to the arithmetic of other batches.
    measured = run(job, "none")
    np.testing.assert_allclose(measured.loss_after, cut.loss_after, rtol=0, atol=1e-5)


def test_strategies_of_one_seed_share_the_order_of_the_tasks_own_examples(job, monkeypatch):
    """The difference between two strategies is the replayed examples, not the shuffle."""
    seen = []
    fine_tune = runs_fine_tune(monkeypatch, seen)
    scores = {e.example_id: float(i) for i, e in enumerate(UPSTREAM)}
    run(job, "random", seed=3)
    run(job, "oracle", scores, seed=3)
    run(job, "random", seed=4)
    own = [[tokens for tokens in stream if tokens.start > 1] for stream in seen]
    old = [[tokens for tokens in stream if tokens.start == 1] for stream in seen]
    assert own[0] == own[1] != own[2]
    assert old[0] != old[1]
    assert fine_tune


def test_another_task_of_the_same_seed_replays_other_examples(job, monkeypatch):
    """Luck that all tasks shared would not show in an interval over tasks."""
    seen = []
    runs_fine_tune(monkeypatch, seen)
    run(job)
    run(job, task="u")
    one, other = ([tokens.ids for tokens in stream if tokens.start == 1] for stream in seen)
    assert one != other


def runs_fine_tune(monkeypatch, seen):
    from lethe.measure import forgetting

    actual = forgetting.fine_tune

    def spy(model, tokens, *arguments, replay=None, **options):
        seen.append([*tokens, *(replay.examples if replay else ())])
        return actual(model, tokens, *arguments, replay=replay, **options)

    monkeypatch.setattr(forgetting, "fine_tune", spy)
    return actual


def test_what_is_predicted_to_be_forgotten_is_what_is_replayed(job, monkeypatch):
    seen = []
    runs_fine_tune(monkeypatch, seen)
    _, tokenizer = models.load(job.card)
    scores = {e.example_id: float(i) for i, e in enumerate(UPSTREAM)}
    run(job, "oracle", scores)
    most = [e for e in UPSTREAM if e.split == "replayable"][-4:]
    expected = {tuple(tokenizer(e.example.text)["input_ids"][:32]) for e in most}
    assert {tuple(tokens.ids) for tokens in seen[0] if tokens.start == 1} == expected


def test_a_held_out_example_among_the_replayed_stops_the_run(job, monkeypatch):
    leaked = [example for example in UPSTREAM if example.split == "heldout"][:1]
    monkeypatch.setattr(runs, "choose", lambda *_: (leaked, 1.0))
    with pytest.raises(LetheError, match=f"held-out examples would be replayed.*{HELDOUT[0]}"):
        run(job)


def test_forgetting_of_held_out_examples_that_cannot_be_measured_is_left_out(job):
    *_, whole = job.run(UPSTREAM)
    after = whole.loss_after.copy()
    after[UPSTREAM.index(next(e for e in UPSTREAM if e.example_id == HELDOUT[0]))] = np.nan
    cut = without_replay(replace(whole, loss_after=after), UPSTREAM, "t")
    expected = float(np.mean(whole.select(HELDOUT[1:]).forgetting))
    assert cut.about["heldout_forgetting"] == pytest.approx(expected)
