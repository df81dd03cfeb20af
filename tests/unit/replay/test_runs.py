import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.cost.ledger import FinishedRow
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import models
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.reader import Reader
from lethe.engine.training_loop import TrainingLoop
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.matrix.gathering import read_replay_runs
from lethe.matrix.rows import Answers
from lethe.measure.forgetting import Job, base_losses
from lethe.replay import runs
from lethe.replay.replay_inputs import ReplayInputs
from lethe.replay.runs import (
    fine_tune_at_shares,
    fine_tune_with_replay,
    gather_runs,
    replay_line,
    without_replay,
)
from lethe.replay.strategies import Choice

UPSTREAM = tiny.upstream(16)
HELDOUT = [example.example_id for example in UPSTREAM if example.split == "heldout"]
MIX = {"ratio": 0.25, "temperature": 0.1, "objective": "text", "dose": "mixed"}


@pytest.fixture(scope="module")
def job(model_folders):
    card, scoring = model_folders["olmo"], Scoring(max_tokens=24, tokens_per_batch=4096)
    model, tokenizer = models.load(card)
    base = base_losses(Reader(model, tokenizer, scoring), UPSTREAM, {"model": card})
    recipe = Recipe(steps=4, batch=4, lr=1e-2, warmup_steps=1, max_tokens=32)
    return Job(card, base, tiny.pairs(20, seed=1), tiny.pairs(6, seed=2), recipe, scoring)


def settings(strategy="random", **changes):
    return Replay(strategies=list({"random": 0, strategy: 0}), **MIX | changes).resolve(strategy)


def run(job, strategy="random", scores=None, seed=0, task="t", **changes):
    chosen = settings(strategy, **changes)
    inputs = ReplayInputs(forgetting=scores)
    return fine_tune_with_replay(job, UPSTREAM, chosen, task=task, seed=seed, inputs=inputs)


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
    cut = without_replay(whole, UPSTREAM, task="t")
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
    choice = Choice(np.array([0]), 1.0, 12)
    monkeypatch.setattr(runs, "choose_replayed", lambda *_, **__: (leaked, choice))
    with pytest.raises(LetheError, match=f"held-out examples would be replayed.*{HELDOUT[0]}"):
        run(job)


def test_forgetting_of_held_out_examples_that_cannot_be_measured_is_left_out(job):
    *_, whole = job.run(UPSTREAM)
    after = whole.loss_after.copy()
    after[UPSTREAM.index(next(e for e in UPSTREAM if e.example_id == HELDOUT[0]))] = np.nan
    cut = without_replay(replace(whole, loss_after=after), UPSTREAM, task="t")
    expected = float(np.mean(whole.select(HELDOUT[1:]).forgetting))
    assert cut.about["heldout_forgetting"] == pytest.approx(expected)


def test_importance_sampling_hands_its_weights_to_the_training(job, monkeypatch):
    scores = {e.example_id: 0.1 + i / 10 for i, e in enumerate(UPSTREAM)}
    term = {"objective": "kl", "dose": "token", "weight": 4.0}
    seen = []
    runs_fine_tune(monkeypatch, seen)
    row = run(job, "importance", scores, **term)
    replayed = [tokens for tokens in seen[0] if tokens.start == 1]
    assert len(replayed) == 4 and len({tokens.weight for tokens in replayed}) == 4
    assert sum(tokens.weight for tokens in replayed) == pytest.approx(4)
    assert (row.about["replayed_distinct"], row.about["strategy"]) == (4, "importance")
    assert not row.about["random_in_effect"]


def test_a_checkpoint_is_of_one_set_of_weights(job, tmp_path):
    resumable = replace(job, unfinished=tmp_path / "c")
    made = []
    for weights in (None, np.array([0.5, 1.5]), np.array([1.5, 0.5])):
        term = runs.replay_term(settings(dose="step"), UPSTREAM[:2], weights=weights)
        made.append(resumable.made_from(UPSTREAM, term))
    assert len(set(made)) == 3


def test_a_run_says_how_its_examples_were_drawn_and_their_share_of_the_tokens(job, caplog):
    row = run(job, "oracle", {e.example_id: float(i) for i, e in enumerate(UPSTREAM)})
    line = replay_line(row)
    assert (line["pool"], line["temperature_nats"], line["random_in_effect"]) == (12, 0.1, False)
    _, tokenizer = models.load(job.card)
    texts = [tokenizer(e.example.text)["input_ids"] for e in UPSTREAM if e.split == "replayable"]
    # Four upstream texts beside sixteen answers of a few tokens.
    assert 0.4 < line["replayed_token_share"] < 0.9
    assert min(map(len, texts)) > 10
    assert "random replay in effect" not in caplog.text


def test_a_ratio_below_one_example_is_said(job, caplog):
    row = run(job, ratio=1 / 32)
    assert row.about["replayed"] == 1
    assert "replay.ratio 0.03125 of 16 new examples is less than one example" in caplog.text


def test_a_strategy_that_draws_at_random_in_effect_says_so(job, caplog):
    scores = {e.example_id: float(i) for i, e in enumerate(UPSTREAM)}
    row = run(job, "oracle", scores, temperature=1e4)
    assert row.about["random_in_effect"]
    assert "t, replay oracle: this is random replay in effect" in caplog.text
    assert "replayable examples; lower replay.temperature" in caplog.text
    caplog.clear()
    # Of the twelve examples, twelve are taken: there is no temperature to lower.
    run(job, "oracle", scores, draw="top", ratio=0.75)
    assert "replayable examples; lower replay.ratio or give more upstream" in caplog.text
    caplog.clear()
    run(job, "random")
    assert "in effect" not in caplog.text


def test_the_base_losses_that_perplexity_needs_come_from_the_base_row(job, monkeypatch):
    seen = []
    runs_fine_tune(monkeypatch, seen)
    run(job, "perplexity", draw="top")
    losses = dict(zip(job.base.example_ids, job.base.loss_before, strict=True))
    pool = [e for e in UPSTREAM if e.split == "replayable"]
    hardest = sorted(pool, key=lambda e: -losses[e.example_id])[:4]
    _, tokenizer = models.load(job.card)
    expected = {tuple(tokenizer(e.example.text)["input_ids"][:32]) for e in hardest}
    assert {tuple(tokens.ids) for tokens in seen[0] if tokens.start == 1} == expected


def test_gathered_runs_have_their_rises_beside_their_mean(job):
    gathered = gather_runs([run(job), run(job, "none"), run(job, seed=1)], UPSTREAM)
    record = gathered.records[0]
    assert (record["strategy"], record["seed"]) == ("random", 0)
    assert record["noise_floor"] == gathered.noise_floor > 0
    assert record["worst_domain"] in "ab"
    assert record["worst_domain_forgetting"] >= record["heldout_forgetting"]
    assert record["drift"] >= abs(record["heldout_forgetting"])
    fixed = gather_runs([run(job)], UPSTREAM, noise_floor=100.0)
    assert fixed.records[0]["rise_share"] == 0
    cut = run(job).select(HELDOUT[1:])
    with pytest.raises(LetheError, match="'random' of task 't' measured other held-out"):
        gather_runs([run(job), cut], UPSTREAM)


KL = {"objective": "kl", "dose": "token", "weight": 4.0}


@pytest.mark.parametrize("changes", [KL, KL | {"objective": "both"}, KL | {"dose": "step"}])
def test_the_objective_and_the_dose_of_the_settings_reach_the_training(job, changes):
    text, other = run(job), run(job, **changes)
    assert (text.loss_after != other.loss_after).any()
    assert other.about["replayed"] == 4
    drift = {name: np.abs(row.forgetting).mean() for name, row in [("text", text), ("kl", other)]}
    assert np.isfinite(list(drift.values())).all()


def test_kl_replay_keeps_the_model_nearer_to_the_base_than_text_replay(job):
    near = run(job, **KL | {"weight": 30.0}, ratio=0.5, heldout_kl=True)
    text = run(job, ratio=0.5, heldout_kl=True)
    assert 0 < replay_line(near)["heldout_kl"] < replay_line(text)["heldout_kl"]
    assert "heldout_kl" not in replay_line(run(job))


def test_a_share_of_the_change_of_weights_forgets_less_and_none_of_it_nothing(job):
    variants = {"half": {"strategy": "none", "interpolate": 0.5}}
    half = Replay(strategies=["random"], variants=variants).resolve("half")
    row = fine_tune_with_replay(job, UPSTREAM, half, task="t", seed=0)
    whole = run(job, "none")
    assert np.abs(row.forgetting).mean() < np.abs(whole.forgetting).mean()
    tiny_share = half.model_copy(update={"interpolate": 1e-9})
    still = fine_tune_with_replay(job, UPSTREAM, tiny_share, task="t", seed=0)
    assert np.abs(still.forgetting).max() < 1e-4


LORA = {"method": "lora", "lora": {"rank": 2}}


@pytest.mark.parametrize("changes", [{}, {"recipe": LORA}])
def test_shares_scored_from_one_fine_tune_are_those_of_separate_runs_to_the_bit(
    job, changes, monkeypatch, tmp_path
):
    shares = [0.25, 0.5, 1.0]
    common = {"strategy": "random"} | changes
    variants = {"line": common | {"interpolate": shares}}
    replay = Replay(strategies=["random"], **MIX | {"heldout_kl": True}, variants=variants)
    line = replay.resolve("line")
    trained = replace(job, recipe=line.apply_to(job.recipe))
    seen = []
    runs_fine_tune(monkeypatch, seen)
    rows_of_line = fine_tune_at_shares(trained, UPSTREAM, line, task="t", seed=1)
    assert len(seen) == 1, "one fine-tune for all shares"
    assert [row.about["strategy"] for row in rows_of_line] == ["line-0.25", "line-0.5", "line-1"]
    for share, row in zip(shares, rows_of_line, strict=True):
        alone_settings = line.model_copy(update={"name": "alone", "interpolate": share})
        alone = fine_tune_with_replay(trained, UPSTREAM, alone_settings, task="t", seed=1)
        assert row.loss_after.tobytes() == alone.loss_after.tobytes()
        assert row.settings == alone.settings
        one = replay_line(row) | {"strategy": "", "training_seconds": 0}
        assert one.pop("variant") == "line"
        assert one == replay_line(alone) | {"strategy": "", "training_seconds": 0}
    # The files of the runs: one per job, whose rows the tables list under their names.
    path = tmp_path / "line/t-seed1.parquet"
    rows.write_rows(path, rows_of_line)
    listed = read_replay_runs([path])
    assert [row.about["strategy"] for row in listed] == ["line-0.25", "line-0.5", "line-1"]
    assert listed[1].loss_after.tobytes() == rows_of_line[1].loss_after.tobytes()
    renamed = tmp_path / "other/t-seed1.parquet"
    rows.write_rows(renamed, rows_of_line)
    with pytest.raises(LetheError, match="is the run line/t-seed1"):
        read_replay_runs([renamed])


def test_the_fine_tune_of_several_shares_counts_once(job, monkeypatch):
    # A clock that moves by one second whenever it is read: no pause of the machine counts.
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    variants = {"line": {"strategy": "none", "interpolate": [0.5, 1.0]}}
    line = Replay(strategies=["random"], **MIX, variants=variants).resolve("line")
    first, second = fine_tune_at_shares(job, UPSTREAM, line, task="t", seed=0)
    finished = [FinishedRow(row=row, file_bytes=0) for row in (first, second)]
    assert finished[0].training_tokens > 0 and finished[1].training_tokens == 0
    assert first.about["seconds"] > second.about["seconds"] > 0
    with pytest.raises(LetheError, match="2 shares.*fine_tune_at_shares"):
        fine_tune_with_replay(job, UPSTREAM, line, task="t", seed=0)


def test_a_run_without_replay_carries_no_replayed_tokens(job):
    assert replay_line(run(job, "none"))["replayed_token_share"] == 0
    assert replay_line(run(job, "none", seed=1))["replayed_token_share"] == 0


def test_mir_replays_the_largest_rises_after_one_step_on_the_task(job, monkeypatch):
    step = job.recipe.model_copy(update={"steps": 1, "warmup_steps": 0, "decay": "constant"})
    pool = [example for example in UPSTREAM if example.split == "replayable"]
    *_, row = replace(job, recipe=step).run(pool)
    order = np.argsort(-row.forgetting)
    most = {tuple_of(job, pool[i]) for i in order[:4]}
    seen = []
    runs_fine_tune(monkeypatch, seen)
    run(job, "mir")
    assert len(seen) == 2, "a virtual step, and the training"
    assert {tuple(tokens.ids) for tokens in seen[1] if tokens.start == 1} == most


def test_mir_ranks_by_the_rise_in_loss_where_answers_are_counted(job, monkeypatch):
    *_, row = job.run(UPSTREAM[:4])
    right = np.array([1.0, 1.0, 0.0, np.nan])
    kept = np.array([1.0, 0.0, np.nan, np.nan])
    answers = Answers(right, kept, right, kept, [None] * 4)
    monkeypatch.setattr(type(job), "run", lambda *_, **__: (None, replace(row, answers=answers)))
    rises = runs.rises_after_virtual_step(job, UPSTREAM, candidates=4, seed=[0], title="t")
    measured = sorted(value for value in rises.values() if np.isfinite(value))
    np.testing.assert_array_equal(measured, np.sort(row.loss_after - row.loss_before))


def test_mir_takes_its_virtual_step_with_as_many_candidates_as_the_settings_say(job, monkeypatch):
    rises = runs.rises_after_virtual_step(job, UPSTREAM, candidates=6, seed=[0, 1], title="t")
    assert len(rises) == 12
    assert np.isfinite(list(rises.values())).sum() == 6
    requested = []

    def spy(job, upstream, *, candidates, **options):
        requested.append(candidates)
        return {example.example_id: 0.0 for example in upstream}

    monkeypatch.setattr(runs, "rises_after_virtual_step", spy)
    for changes in ({}, {"mir_candidates": 2}):
        run(job, "mir", **changes)
    assert requested == [30 * 4, 2 * 4]


def test_the_virtual_step_of_mir_is_a_whole_one_where_the_weights_are_averaged(job):
    """The average over one step is nearly the base model."""

    def rises(recipe):
        changed = replace(job, recipe=job.recipe.model_copy(update=recipe))
        return runs.rises_after_virtual_step(changed, UPSTREAM, candidates=12, seed=[0], title="t")

    assert rises({"ema": 0.99}) == rises({})


def test_mir_that_resumes_takes_no_second_virtual_step(job, tmp_path, monkeypatch):
    uninterrupted = run(job, "mir")
    resumable = replace(job, unfinished=tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "due", lambda checkpoint: checkpoint.folder is not None)
        patch.setattr(TrainingLoop, "take", interrupted_at(3, TrainingLoop.take))
        with pytest.raises(KeyboardInterrupt):
            run(resumable, "mir")
    streams = []
    runs_fine_tune(monkeypatch, streams)
    row = run(resumable, "mir")
    assert len(streams) == 1, "the training, and no virtual step"
    assert row.loss_after.tobytes() == uninterrupted.loss_after.tobytes()
    assert row.about["probe_passes"] == uninterrupted.about["probe_passes"] == 12
    # Another seed has another virtual step, whatever the folder holds.
    streams.clear()
    run(resumable, "mir", seed=1)
    assert len(streams) == 2
    resumable.finish()
    assert not (tmp_path / "c").exists()


def interrupted_at(step, take):
    """In place of a step of the training: the steps of it until one is interrupted."""

    def steps(loop, examples, number, title):
        if number == step:
            raise KeyboardInterrupt
        return take(loop, examples, number, title)

    return steps


def tuple_of(job, example):
    _, tokenizer = models.load(job.card)
    return tuple(tokenizer(example.example.text)["input_ids"][:32])


@pytest.mark.parametrize("strategy", ["random", "mir"])
def test_a_copy_of_a_held_out_text_is_never_replayed(job, strategy, caplog):
    pair = UpstreamExample("h", "a", "heldout", Example(prompt="what is it", answer="a secret"))
    spaced = replace(pair.example, answer=" a secret ")
    copies = [
        replace(pair, example_id="copy", split="replayable"),
        replace(pair, example_id="spaced", split="replayable", example=spaced),
    ]
    base = job.base
    longer = replace(
        base,
        example_ids=[*base.example_ids, "h", "copy", "spaced"],
        loss_before=np.append(base.loss_before, [1.0] * 3),
        loss_after=np.append(base.loss_after, [1.0] * 3),
        n_tokens=np.append(base.n_tokens, [2] * 3),
    )
    upstream = [*UPSTREAM, pair, *copies]
    # As many draws as there are examples, so that each is drawn.
    chosen = settings(strategy, ratio=0.9)
    of_all = replace(job, base=longer)
    made = runs.choose_replay(of_all, upstream, chosen, task="t", seed=0, title="title")
    replayed = {example.example_id for example in made.replayed}
    assert replayed and not replayed & {"h", "copy", "spaced"}
    assert "title: 2 of 19 upstream examples have the text of a held-out one" in caplog.text
    with pytest.raises(LetheError, match=r"held-out examples would be replayed: \['spaced'\]"):
        runs.refuse_heldout(copies[1:], [pair], chosen)
