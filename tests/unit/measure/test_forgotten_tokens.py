from dataclasses import replace

import numpy as np
import pytest
from helpers import tiny

from lethe.config.model_settings import LoRA, Memory, Recipe, Router, Scoring
from lethe.data.tokens import Tokens
from lethe.engine.reader import Reader
from lethe.engine.scoring import score, score_tokens
from lethe.matrix.rows import Row
from lethe.matrix.token_files import read_token_file, write_token_file
from lethe.measure.forgetting import Job, base_losses
from lethe.measure.forgotten_tokens import measure_tokens, select_most_forgotten

UPSTREAM = tiny.upstream(16)
SCORING = Scoring(max_tokens=24, tokens_per_batch=100)


def make_job(card, **changes) -> Job:
    settings = {"model": card, "scoring": SCORING.model_dump(mode="json")}
    sizes = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32}
    return Job(
        card=card,
        base=base_losses(Reader.load(card, SCORING), UPSTREAM, settings),
        train=tiny.pairs(20, seed=1),
        evaluation=tiny.pairs(6, seed=2),
        recipe=Recipe(**sizes | changes),
        scoring=SCORING,
    )


def measure(job, count=5):
    model, tokenizer, row = job.run(UPSTREAM)
    tokens = measure_tokens(
        job, model, tokenizer, upstream=UPSTREAM, row=row, count=count, title="task"
    )
    return row, tokens


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": LoRA(rank=2, alpha=4)}])
def test_the_mean_of_the_token_losses_is_the_loss_of_the_row(model_folders, changes):
    row, examples = measure(make_job(model_folders["olmo"], **changes))
    numbers = [row.example_ids.index(example.example_id) for example in examples]
    assert numbers == np.argsort(-row.forgetting, kind="stable")[:5].tolist()
    for example, number in zip(examples, numbers, strict=True):
        assert np.isnan(example.before[0]) and np.isnan(example.after[0])
        assert np.isfinite(example.before).sum() == row.n_tokens[number]
        np.testing.assert_allclose(np.nanmean(example.before), row.loss_before[number], rtol=2e-3)
        np.testing.assert_allclose(np.nanmean(example.after), row.loss_after[number], rtol=2e-3)
        text = UPSTREAM[number].example.text
        assert text.startswith("".join(example.tokens).strip()[:20])


def test_the_same_job_writes_the_same_bytes_and_leaves_the_row_as_it_is(model_folders, tmp_path):
    job = make_job(model_folders["gpt_neox"])
    *_, alone = job.run(UPSTREAM)
    for name in ("one", "two"):
        row, examples = measure(job)
        write_token_file(tmp_path / name, examples)
        np.testing.assert_array_equal(row.loss_after, alone.loss_after)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len(read_token_file(tmp_path / "one")) == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"router": Router(prompt_tokens=8, quantile=0.8)},
        {"method": "memory", "memory": Memory(prompt_tokens=8, quantile=0.8)},
    ],
)
def test_tokens_of_an_example_that_is_not_routed_are_those_of_the_base(model_folders, changes):
    replayable = [example for example in UPSTREAM if example.split == "replayable"]
    job = replace(make_job(model_folders["llama"], **changes), replayable=replayable)
    row, examples = measure(job, count=len(UPSTREAM))
    assert 0 < (row.forgetting != 0).mean() < 1
    for example in examples:
        number = row.example_ids.index(example.example_id)
        changed = not np.array_equal(example.before, example.after, equal_nan=True)
        assert changed == (row.forgetting[number] != 0)


def test_a_count_above_the_number_of_examples_takes_all_with_a_value(model_folders):
    row, examples = measure(make_job(model_folders["olmo"]), count=100)
    assert len(examples) == np.isfinite(row.forgetting).sum()


def test_examples_are_ordered_by_forgetting_and_those_without_a_value_are_left_out():
    after = np.array([1, 3, np.nan, 2, 3], dtype=np.float32)
    row = Row(
        example_ids=list("abcde"),
        loss_before=np.zeros(5, dtype=np.float32),
        loss_after=after,
        n_tokens=np.ones(5),
        settings={},
    )
    assert select_most_forgotten(row, 3) == [1, 4, 3]
    assert select_most_forgotten(replace(row, loss_after=np.full(5, np.nan)), 3) == []


def test_token_losses_do_not_depend_on_the_other_examples():
    model = tiny.model("olmo")
    examples = [*tiny.tokens((9, 3), (5, 1), (12, 1)), Tokens([7, 8], 2)]
    losses = score_tokens(model, examples, 20, "tokens")
    assert [len(values) for values in losses] == [6, 4, 11, 0]
    means = score(model, examples, tokens_per_batch=100).losses
    for values, mean in zip(losses[:3], means, strict=False):
        np.testing.assert_allclose(values.mean(), mean, rtol=1e-5)
    assert score_tokens(model, [], 20, "tokens") == []
