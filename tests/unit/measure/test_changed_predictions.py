from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA, Memory, Recipe, Scoring
from lethe.engine import models
from lethe.engine.prediction_changes import MEASURES
from lethe.engine.reader import Reader
from lethe.measure.changed_predictions import measure_changed_predictions
from lethe.measure.forgetting import Job, base_losses

UPSTREAM = tiny.upstream(16)
SCORING = Scoring(max_tokens=24, tokens_per_batch=100)


def make_job(card, **changes) -> Job:
    settings = {"model": card, "scoring": SCORING.model_dump()}
    sizes = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32}
    return Job(
        card=card,
        base=base_losses(Reader.load(card, SCORING), UPSTREAM, settings),
        train=tiny.pairs(20, seed=1),
        evaluation=tiny.pairs(6, seed=2),
        recipe=Recipe(**sizes | changes),
        scoring=SCORING,
    )


def measure(job, model, tokenizer, row):
    return measure_changed_predictions(
        job, model, tokenizer, upstream=UPSTREAM, row=row, title="task"
    )


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": LoRA(rank=2, alpha=4)}])
def test_measures_are_those_of_the_two_models_own_logits(model_folders, changes):
    job = make_job(model_folders["olmo"], **changes)
    model, tokenizer, row = job.run(UPSTREAM)
    measured = measure(job, model, tokenizer, row)
    assert tuple(measured) == MEASURES
    base, _ = models.load(model_folders["olmo"])
    ids = torch.tensor([tokenizer(UPSTREAM[3].example.text)["input_ids"][: SCORING.max_tokens]])
    with torch.no_grad():
        log = model(input_ids=ids)[0][0, :-1].log_softmax(1)
        base_log = base(input_ids=ids)[0][0, :-1].log_softmax(1)
    words = ids[0, 1:]
    right_before = base_log.argmax(1) == words
    right_after = log.argmax(1) == words
    expected = {
        "kl": (base_log.exp() * (base_log - log)).sum(1),
        "top1_changed": base_log.argmax(1) != log.argmax(1),
        "top1_right_before": right_before,
        "top1_right_after": right_after,
        "top1_lost": right_before & ~right_after,
        "top1_gained": ~right_before & right_after,
        "entropy_before": -(base_log.exp() * base_log).sum(1),
        "entropy_after": -(log.exp() * log).sum(1),
    }
    for name, by_token in expected.items():
        np.testing.assert_allclose(
            measured[name][3], by_token.float().mean(), rtol=1e-3, atol=1e-5, err_msg=name
        )
    # Lost and gained tokens are the difference of the shares that are right.
    np.testing.assert_allclose(
        measured["top1_gained"] - measured["top1_lost"],
        measured["top1_right_after"] - measured["top1_right_before"],
        atol=1e-6,
    )


def test_an_untrained_model_changes_nothing(model_folders):
    job = make_job(model_folders["gpt_neox"])
    base, tokenizer = models.load(model_folders["gpt_neox"])
    measured = measure(job, base, tokenizer, job.base)
    for name in ("kl", "top1_changed", "top1_lost", "top1_gained"):
        np.testing.assert_array_equal(measured[name], 0)
    np.testing.assert_array_equal(measured["entropy_before"], measured["entropy_after"])


def test_divergences_are_those_of_a_replay_run_and_the_row_stays(model_folders):
    job = make_job(model_folders["olmo"])
    model, tokenizer, row = job.run(UPSTREAM)
    measured = measure(job, model, tokenizer, row)
    alone = job.divergences(model, tokenizer, UPSTREAM, "t")
    np.testing.assert_allclose(measured["kl"], alone, rtol=1e-4)
    *_, again = job.run(UPSTREAM)
    np.testing.assert_array_equal(row.loss_after, again.loss_after)


def test_a_memory_is_routed_by_the_prompts_of_each_batch(model_folders):
    memory = Memory(prompt_tokens=8, quantile=0.8)
    job = make_job(model_folders["llama"], method="memory", memory=memory)
    replayable = [example for example in UPSTREAM if example.split == "replayable"]
    job = replace(job, replayable=replayable)
    model, tokenizer, row = job.run(UPSTREAM)
    measured = measure(job, model, tokenizer, row)
    alone = job.divergences(model, tokenizer, UPSTREAM, "t")
    np.testing.assert_allclose(measured["kl"], alone, rtol=1e-2)
    np.testing.assert_array_equal(measured["kl"] != 0, row.forgetting != 0)
    assert 0 < (row.forgetting != 0).mean() < 1


def test_half_as_much_at_a_time_measures_the_same(model_folders):
    job = make_job(model_folders["olmo"])
    model, tokenizer, row = job.run(UPSTREAM)
    whole = measure(job, model, tokenizer, row)
    halves = measure(replace(job, halvings=2), model, tokenizer, row)
    for name in MEASURES:
        np.testing.assert_allclose(whole[name], halves[name], rtol=1e-4, atol=1e-6)
