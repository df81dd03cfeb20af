"""Fine-tunes with a memory or a router: which examples are routed, and what stays to the bit."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import ExactMatch, LoRA, Memory, Recipe, Router, Scoring
from lethe.config.replay_settings import Replay
from lethe.data.examples import write_examples, write_upstream
from lethe.engine import models
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.objectives import ReplayTerm
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.files import write_json
from lethe.matrix import rows
from lethe.measure.fine_tune_job import fine_tune_job
from lethe.measure.forgetting import Job, base_losses
from lethe.measure.repeats import repeat
from lethe.measure.shares import rows_at_shares
from lethe.replay.runs import fine_tune_with_replay, replay_line

UPSTREAM = tiny.upstream(48)
REPLAYABLE = [example for example in UPSTREAM if example.split == "replayable"]
SCORING = Scoring(max_tokens=24, tokens_per_batch=60)
SMALL = {"steps": 6, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32}
ROUTER = Router(prompt_tokens=8, quantile=0.8)
RECIPES = {
    "memory": Recipe(**SMALL, method="memory", memory=Memory(prompt_tokens=8, quantile=0.8)),
    "full": Recipe(**SMALL, router=ROUTER),
    "lora": Recipe(**SMALL, method="lora", lora=LoRA(rank=2), router=ROUTER),
}


def job(card, recipe, scoring=SCORING, upstream=UPSTREAM, **changes) -> Job:
    shared = {"model": card, "scoring": scoring.model_dump(mode="json")}
    return Job(
        card=card,
        base=base_losses(Reader.load(card, scoring), upstream, shared),
        train=tiny.pairs(20, seed=1),
        evaluation=tiny.pairs(6, seed=2),
        recipe=recipe,
        scoring=scoring,
        replayable=REPLAYABLE,
        **changes,
    )


@pytest.mark.parametrize("method", list(RECIPES))
def test_forgetting_is_exactly_zero_where_nothing_is_routed(model_folders, method):
    *_, row = job(model_folders["llama"], RECIPES[method]).run(UPSTREAM)
    heldout = np.array([example.split == "heldout" for example in UPSTREAM])
    forgotten = row.forgetting != 0
    assert forgotten[heldout].mean() == row.about["heldout_routed"]
    # At most 1 - quantile of the replayable examples.
    assert forgotten[~heldout].mean() <= 0.2
    assert row.about["eval_routed"] > 0
    assert row.about["eval_loss_after"] < row.about["eval_loss_before"]
    unrouted = ~forgotten
    assert row.loss_after[unrouted].tobytes() == row.loss_before[unrouted].tobytes()
    assert 0 < row.about["routing_overlap"] <= 1


def test_bytes_are_those_of_the_matrix_and_one_bit_per_feature(model_folders):
    *_, row = job(model_folders["llama"], RECIPES["memory"]).run(UPSTREAM)
    # The down projection has 64 inputs and 16 outputs; the 20 training prompts differ.
    assert row.about["memory_bytes"] == 4 * 64 * 16 + 20 * 8
    *_, routed = job(model_folders["llama"], RECIPES["full"]).run(UPSTREAM)
    assert routed.about["memory_bytes"] > row.about["memory_bytes"]


def test_without_routing_everything_changes(model_folders):
    recipe = RECIPES["memory"].model_copy(update={"memory": Memory(routing=False)})
    *_, row = job(model_folders["llama"], recipe).run(UPSTREAM)
    assert (row.forgetting != 0).all()
    assert row.about["heldout_routed"] == row.about["eval_routed"] == 1
    assert "routing_overlap" not in row.about


@pytest.mark.parametrize("method", list(RECIPES))
def test_the_router_never_sees_held_out_examples(model_folders, method):
    measured = job(model_folders["llama"], RECIPES[method])
    *_, row = measured.run(UPSTREAM)
    others = tiny.upstream(48, seed=9)
    changed = []
    for example, other in zip(UPSTREAM, others, strict=True):
        heldout = example.split == "heldout"
        changed.append(replace(example, example=other.example) if heldout else example)
    *_, again = job(model_folders["llama"], RECIPES[method], upstream=changed).run(changed)
    assert again.about["routing_overlap"] == row.about["routing_overlap"]
    replayable = np.array([example.split == "replayable" for example in UPSTREAM])
    assert np.allclose(again.forgetting[replayable], row.forgetting[replayable], atol=1e-5)
    with pytest.raises(LetheError, match="must not see held-out"):
        replace(measured, replayable=UPSTREAM).run(UPSTREAM)


def test_the_job_of_a_rule_draws_replayable_examples_only(model_folders, tmp_path):
    twin = replace(UPSTREAM[3], example_id="twin", split="replayable")
    write_json(tmp_path / "card.json", model_folders["llama"])
    write_upstream(tmp_path / "upstream.parquet", [*UPSTREAM, twin])
    rows.write_row(tmp_path / "base.parquet", job(model_folders["llama"], RECIPES["full"]).base)
    for name in ("train", "evaluation"):
        write_examples(tmp_path / f"{name}.parquet", tiny.pairs(3))
    names = {"card": "card.json", "base": "base.parquet", "upstream": "upstream.parquet"}
    names |= {"train": "train.parquet", "evaluation": "evaluation.parquet"}
    inputs = {key: str(tmp_path / name) for key, name in names.items()}
    made = fine_tune_job(inputs, RECIPES["memory"], SCORING, threads=1, gpus=0)
    assert {e.example_id for e in made.replayable} == {e.example_id for e in REPLAYABLE}
    few = RECIPES["full"].model_copy(update={"router": Router(examples=5)})
    assert len(fine_tune_job(inputs, few, SCORING, threads=1, gpus=0).replayable) == 5
    assert fine_tune_job(inputs, Recipe(), SCORING, threads=1, gpus=0).replayable == []


@pytest.mark.parametrize("method", list(RECIPES))
def test_divergence_is_zero_where_nothing_is_routed(model_folders, method):
    measured = job(model_folders["llama"], RECIPES[method])
    model, tokenizer, row = measured.run(UPSTREAM)
    values = measured.divergences(model, tokenizer, UPSTREAM, "divergence")
    assert (values[row.forgetting != 0] > 0).all()
    assert np.abs(values[row.forgetting == 0]).max() < 1e-6


@pytest.mark.parametrize("method", ["memory", "full"])
def test_answers_of_what_is_not_routed_are_those_of_the_base(model_folders, method):
    scoring = SCORING.model_copy(update={"exact_match": ExactMatch(max_new_tokens=3)})
    questions = []
    for example, pair in zip(UPSTREAM, tiny.pairs(48, seed=5), strict=True):
        questions.append(replace(example, example=pair))
    measured = job(model_folders["llama"], RECIPES[method], scoring, questions)
    replayable = [example for example in questions if example.split == "replayable"]
    *_, row = replace(measured, replayable=replayable).run(questions)
    unrouted = row.loss_after == row.loss_before
    assert unrouted.any()
    before = row.answers.exact_match_before
    asked = unrouted & (before == 1)
    assert (row.answers.exact_match_after[asked] == 1).all()
    assert "eval_exact_match_after" in row.about


class Stopped(Exception):
    """Ends a training in the middle."""


@pytest.mark.parametrize("method", list(RECIPES))
def test_a_run_that_resumes_ends_with_the_same_bytes(model_folders, method, tmp_path, monkeypatch):
    monkeypatch.setenv("LETHE_CHECKPOINT_MINUTES", "0")
    term = ReplayTerm(REPLAYABLE[:6], objective="kl", weight=2.0, dose="token")
    *_, expected = job(model_folders["gpt_neox"], RECIPES[method]).run(UPSTREAM, term)
    measured = job(model_folders["gpt_neox"], RECIPES[method], unfinished=tmp_path / "unfinished")
    save = Checkpoint.save
    saved = []

    def save_and_stop(checkpoint, part=None, *arguments):
        save(checkpoint, part, *arguments)
        saved.append(part)
        if len(saved) in (3, 9):
            raise Stopped

    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    for _ in range(2):
        with pytest.raises(Stopped):
            measured.run(UPSTREAM, term)
    *_, row = measured.run(UPSTREAM, term)
    assert "scores" in saved
    assert row.loss_after.tobytes() == expected.loss_after.tobytes()
    assert row.about["eval_loss_after"] == expected.about["eval_loss_after"]
    assert row.about["heldout_routed"] == expected.about["heldout_routed"]


def test_a_memory_is_a_variant_of_replay_alone_and_with_kl(model_folders):
    section = Replay(
        strategies=["random"],
        ratio=0.25,
        heldout_kl=True,
        variants={
            "memory": {
                "strategy": "none",
                "recipe": {"method": "memory", "memory": {"quantile": 0.9}},
            },
            "memory-random": {"strategy": "random", "recipe": {"method": "memory"}},
            "whole": {
                "strategy": "none",
                "recipe": {"method": "memory", "memory": {"routing": False}},
            },
            "behind": {"strategy": "none", "recipe": {"router": {"quantile": 0.9}}},
        },
    )
    lines = {}
    for run in section.runs():
        recipe = run.apply_to(Recipe(**SMALL))
        measured = job(model_folders["olmo"], recipe)
        row = fine_tune_with_replay(measured, UPSTREAM, run, task="t", seed=1)
        lines[run.name] = replay_line(row)
    assert "heldout_routed" not in lines["random"]
    assert lines["whole"]["heldout_routed"] == 1
    assert lines["memory"]["heldout_routed"] == lines["behind"]["heldout_routed"] < 1
    assert lines["memory"]["memory_bytes"] < lines["behind"]["memory_bytes"]
    assert lines["memory-random"]["replayed"] > 0
    assert abs(lines["memory"]["heldout_kl"]) <= abs(lines["whole"]["heldout_kl"])


def test_what_a_router_does_not_go_with_is_refused(model_folders, monkeypatch):
    measured = job(model_folders["llama"], RECIPES["full"])
    with pytest.raises(LetheError, match=r"noise\.measurements"):
        repeat(measured, UPSTREAM, seed=1, measurements=1, task="t")
    model, tokenizer, row = measured.run(UPSTREAM)
    shares = rows_at_shares(
        measured, model, tokenizer, row, upstream=UPSTREAM, shares=[0.5], title="t"
    )
    with pytest.raises(LetheError, match="interpolate one share"):
        next(shares)
    chooser = type("Chooser", (), {"settings": dict})()
    with pytest.raises(LetheError, match="online, closed_loop"):
        measured.run(UPSTREAM, ReplayTerm(REPLAYABLE[:3], chooser=chooser))
    monkeypatch.setenv("LETHE_PROCESSES", "2")
    monkeypatch.setattr(models, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(LetheError, match="one process only"):
        measured._routes(None, [], [])


def test_half_of_the_memory_changes_what_all_of_it_changes(model_folders):
    measured = job(model_folders["llama"], RECIPES["memory"])
    *_, row = measured.run(UPSTREAM)
    *_, half = replace(measured, share_of_change=0.5).run(UPSTREAM)
    unrouted = row.forgetting == 0
    assert (half.forgetting[unrouted] == 0).all()
    assert (half.forgetting[~unrouted] != row.forgetting[~unrouted]).all()
    *_, nothing = replace(measured, share_of_change=0.0).run(UPSTREAM)
    assert (nothing.forgetting == 0).all()


def test_forgetting_is_exactly_zero_in_other_batches_too(model_folders):
    """Replay measures held-out examples only, so their batches are not those of the base losses."""
    measured = job(model_folders["llama"], RECIPES["memory"])
    few = UPSTREAM[3::8]
    *_, row = measured.run(few)
    assert (row.forgetting != 0).mean() == row.about["heldout_routed"] < 1
