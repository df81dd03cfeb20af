import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA, Recipe, Scoring
from lethe.data.examples import Example, read_upstream, write_upstream
from lethe.engine import models, objectives, scoring
from lethe.engine import reader as readers
from lethe.engine.objectives import ReplayTerm
from lethe.engine.reader import Reader
from lethe.engine.scoring import score
from lethe.errors import LetheError, RowError
from lethe.matrix import rows
from lethe.measure.forgetting import Job, base_losses
from lethe.measure.own_task import mean_loss

UPSTREAM = tiny.upstream(16)
SCORING = Scoring(max_tokens=24, tokens_per_batch=100)


def recipe(**changes) -> Recipe:
    sizes = {"steps": 4, "batch": 4, "lr": 1e-2, "warmup_steps": 1, "max_tokens": 32}
    return Recipe(**sizes | changes)


def base(card, scoring=SCORING, upstream=UPSTREAM):
    shared = {"model": card, "scoring": scoring.model_dump()}
    return base_losses(Reader.load(card, scoring), upstream, shared)


def job(card, scoring=SCORING, train=None, **changes) -> Job:
    examples = (tiny.pairs(20, seed=1) if train is None else train, tiny.pairs(6, seed=2))
    return Job(card, base(card, scoring), *examples, recipe(**changes), scoring)


def run(job, **options):
    *_, row = job.run(UPSTREAM, **options)
    return row


def test_rows_of_groups_with_other_steps_make_one_matrix(model_folders):
    few = job(model_folders["olmo"], group_steps={"mix": 6})
    rows_of = {name: run(replace(few, group=name)) for name in ("mmlu", "mix")}
    assert [row.about["steps"] for row in rows_of.values()] == [4, 6]
    assert rows_of["mmlu"].settings == rows_of["mix"].settings


def test_a_late_try_takes_half_as_much_at_a_time_and_measures_the_same(model_folders, monkeypatch):
    whole, passes, batches = job(model_folders["olmo"], micro_batch=4), [], []
    wanted = run(whole)

    def noting(sizes, collate):
        return lambda examples, *device: sizes.append(examples) or collate(examples, *device)

    monkeypatch.setattr(objectives, "collate", noting(passes, objectives.collate))
    monkeypatch.setattr(scoring, "collate", noting(batches, scoring.collate))
    halved = run(replace(whole, halvings=1))
    assert {len(examples) for examples in passes} == {2}
    budget = SCORING.tokens_per_batch // 2
    assert max(len(b) * max(len(e.ids) for e in b) for b in batches) <= budget
    np.testing.assert_allclose(halved.loss_after, wanted.loss_after, atol=1e-5, rtol=0)
    # It is a row of the same matrix.
    assert halved.settings == wanted.settings


def test_rows_are_scored_in_the_batches_that_a_late_try_of_the_base_model_took(model_folders):
    card = model_folders["olmo"]
    still = job(card, lr=0.0)
    shared = {"model": card, "scoring": SCORING.model_dump()}
    halved = base_losses(Reader.load(card, SCORING), UPSTREAM, shared, halvings=1)
    assert halved.about["tokens_per_batch"] == SCORING.tokens_per_batch // 2
    assert not run(replace(still, base=halved)).forgetting.any()


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_fine_tune_that_changes_nothing_forgets_exactly_nothing(
    model_folders, architecture, method
):
    lora = LoRA(rank=2, dropout=0.5) if method == "lora" else None
    row = run(job(model_folders[architecture], lr=0.0, method=method, lora=lora))
    assert row.example_ids == [example.example_id for example in UPSTREAM]
    np.testing.assert_array_equal(row.forgetting, np.zeros(16, dtype=np.float32))
    assert row.about["eval_loss_before"] == row.about["eval_loss_after"]


def test_reduced_precision_forgets_exactly_nothing_either(model_folders):
    scoring = Scoring(max_tokens=24, tokens_per_batch=100, dtype="bfloat16")
    row = run(job(model_folders["olmo"], scoring, lr=0.0))
    assert np.isfinite(row.loss_before).all()
    np.testing.assert_array_equal(row.forgetting, np.zeros(16, dtype=np.float32))


def test_scoring_in_reduced_precision_does_not_train_in_it(model_folders):
    """Rates of 1e-6 are lost when they are added to bfloat16 weights."""
    scoring = Scoring(max_tokens=24, tokens_per_batch=100, dtype="bfloat16")
    settings = {"lr": 1e-6, "warmup_steps": 0, "decay": "constant"}
    reduced, *_ = job(model_folders["olmo"], scoring, **settings).run(UPSTREAM)
    exact, *_ = job(model_folders["olmo"], **settings).run(UPSTREAM)
    assert {parameter.dtype for parameter in reduced.parameters()} == {torch.bfloat16}
    for ours, wanted in zip(reduced.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted.to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("lora", [None, LoRA(rank=4, alpha=64, dropout=0)])
def test_a_fine_tune_learns_its_task_and_changes_upstream_losses(model_folders, lora):
    changes = {"steps": 24, "lora": lora, "method": "full" if lora is None else "lora"}
    changes |= {"lr": 3e-2}
    row = run(job(model_folders["llama"], **changes))
    assert row.about["eval_loss_after"] < row.about["eval_loss_before"] - 0.05
    assert row.about["training_loss_last"] < row.about["training_loss_first"]
    assert np.abs(row.forgetting).min() > 0
    assert row.about["steps"] == 15


def test_losses_before_are_those_of_the_base_row_and_not_measured_again(model_folders):
    """Not the wrapped model's, not the fine-tuned model's: what the base job wrote."""
    wrong = job(model_folders["olmo"], method="lora", lora=LoRA(rank=2))
    shifted = replace(wrong.base, loss_before=wrong.base.loss_before + 7)
    row = run(replace(wrong, base=shifted))
    np.testing.assert_array_equal(row.loss_before, shifted.loss_before)
    np.testing.assert_allclose(row.forgetting, row.loss_after - shifted.loss_before)


def test_base_losses_are_those_of_transformers_on_the_untouched_model(model_folders, tokenizer):
    model, _ = models.load(model_folders["gpt_neox"])
    row = base(model_folders["gpt_neox"])
    np.testing.assert_array_equal(row.loss_before, row.loss_after)
    for example, loss in zip(UPSTREAM, row.loss_before, strict=True):
        ids = torch.tensor([tokenizer(example.example.text)["input_ids"][:24]])
        with torch.no_grad():
            assert loss == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-5)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.3)])
def test_the_same_seed_gives_the_same_columns_settings_and_digest(model_folders, tmp_path, lora):
    method = "full" if lora is None else "lora"
    made = [run(job(model_folders["olmo"], method=method, lora=lora)) for _ in range(2)]
    timeless = [replace(row, about=without_measurements_of_the_machine(row)) for row in made]
    for name, row in zip("ab", timeless, strict=True):
        rows.write_row(tmp_path / name, row)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def without_measurements_of_the_machine(row):
    machine = ("seconds", "per_second", "peak_memory_mb", "date")
    return {key: value for key, value in row.about.items() if not key.endswith(machine)}


def test_another_seed_gives_another_order_and_other_losses(model_folders):
    first, second = (run(job(model_folders["olmo"], seed=seed)) for seed in (0, 1))
    assert (first.loss_after != second.loss_after).any()


def test_what_was_cut_or_empty_is_counted_and_left_out(model_folders):
    long = Example("word " * 60, "yes")
    train = [*tiny.pairs(12), long, Example("Say nothing:", ""), Example("Say nothing:", "  ")]
    row = run(job(model_folders["olmo"], train=train))
    assert (row.about["training_truncated"], row.about["training_empty"]) == (1, 2)
    assert np.isfinite(row.loss_after).all()


def test_upstream_examples_that_cannot_be_scored_are_nan_and_counted(model_folders):
    odd = replace(UPSTREAM[0], example=Example("A question without an answer?", ""))
    upstream = [odd, *UPSTREAM[1:]]
    card = model_folders["olmo"]
    measured = replace(job(card), base=base(card, upstream=upstream))
    *_, row = measured.run(upstream)
    assert np.isnan(row.forgetting).tolist() == [True] + [False] * 15
    assert (row.about["missing"], row.about["empty"], row.n_tokens[0]) == (1, 1, 0)


def test_a_task_whose_answers_are_all_empty_is_refused(model_folders):
    empty = [Example(f"Question {i}", "") for i in range(12)]
    with pytest.raises(LetheError, match="no training example"):
        run(job(model_folders["olmo"], train=empty))


def test_a_base_row_of_other_examples_is_refused(model_folders):
    card = model_folders["olmo"]
    measured = replace(job(card), base=base(card, upstream=UPSTREAM[:8]))
    with pytest.raises(LetheError, match=r"base row lacks 8 .*a-00008"):
        run(measured)


def test_replayed_examples_are_trained_on_beside_the_tasks_own(model_folders):
    upstream = [example for example in UPSTREAM if example.split == "replayable"]
    added = run(job(model_folders["olmo"]), replay=ReplayTerm(upstream[:4]))
    swapped = run(job(model_folders["olmo"]), replay=ReplayTerm(upstream[:4], accounting="swap"))
    assert (added.about["steps"], swapped.about["steps"]) == (5, 4)


def test_a_term_of_every_step_leaves_their_number(model_folders):
    """The row says which share of the loss's tokens replay carries."""
    upstream = [example for example in UPSTREAM if example.split == "replayable"]
    measured = job(model_folders["olmo"])
    plain = run(measured)
    term = ReplayTerm(upstream[:4], objective="kl", weight=4.0, dose="step")
    replayed = run(measured, replay=term)
    assert replayed.about["steps"] == plain.about["steps"] == 4
    assert not np.array_equal(replayed.loss_after, plain.loss_after)
    assert 0 < replayed.about["replayed_token_share"] < 1
    assert "replayed_token_share" not in plain.about
    nothing = run(measured, replay=replace(term, weight=0.0))
    assert nothing.loss_after.tobytes() == plain.loss_after.tobytes()
    assert nothing.about["replayed_token_share"] == 0


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": LoRA(rank=2, dropout=0.3)}])
def test_divergences_compare_the_fine_tuned_model_with_its_base(model_folders, changes):
    """0 where nothing was learned, and for LoRA without a second model."""
    measured = job(model_folders["olmo"], **changes)
    model, tokenizer, row = measured.run(UPSTREAM)
    values = measured.divergences(model, tokenizer, UPSTREAM, "t")
    assert values.shape == row.loss_after.shape and (values > 0).all()
    base, _ = models.load(model_folders["olmo"])
    if not changes:
        still = measured.divergences(base, tokenizer, UPSTREAM, "t")
        np.testing.assert_array_equal(still, 0)
    example = UPSTREAM[3].example.text
    ids = torch.tensor([tokenizer(example)["input_ids"][: SCORING.max_tokens]])
    with torch.no_grad():
        log, base_log = (m(input_ids=ids)[0][0, :-1].log_softmax(1) for m in (model, base))
    expected = (base_log.exp() * (base_log - log)).sum(1).mean()
    np.testing.assert_allclose(values[3], expected, rtol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": LoRA(rank=2, dropout=0.3)}])
def test_a_share_of_the_change_lies_between_base_and_fine_tuned_model(model_folders, changes):
    measured = job(model_folders["olmo"], **changes)
    rows_of_shares = {}
    for share in (None, 0.0, 0.5, 1.0):
        rows_of_shares[share] = run(replace(measured, share_of_change=share))
    tuned = rows_of_shares[None].loss_after
    assert rows_of_shares[1.0].loss_after.tobytes() == tuned.tobytes()
    np.testing.assert_array_equal(rows_of_shares[0.0].forgetting, 0)
    half = np.abs(rows_of_shares[0.5].forgetting).mean()
    assert 0 < half < np.abs(rows_of_shares[None].forgetting).mean()
    fingerprints = set()
    for share in (None, 0.5, 1.0):
        kept = replace(measured, share_of_change=share, unfinished=Path("unused"))
        fingerprints.add(kept.made_from(UPSTREAM, None))
    assert len(fingerprints) == 3


def test_a_checkpoint_is_of_one_number_of_steps(model_folders, tmp_path):
    grouped = job(model_folders["olmo"], group_steps={"short": 2, "long": 5})
    grouped = replace(grouped, unfinished=tmp_path)
    fingerprints = set()
    for group in ("short", "long", "other"):
        fingerprints.add(replace(grouped, group=group).made_from(UPSTREAM))
    assert len(fingerprints) == 3
    # Without steps by group, a group changes nothing.
    plain = replace(job(model_folders["olmo"]), unfinished=tmp_path)
    assert plain.made_from(UPSTREAM) == replace(plain, group="short").made_from(UPSTREAM)


def test_a_checkpoint_is_of_one_replay_term(model_folders, tmp_path):
    measured = replace(job(model_folders["olmo"]), unfinished=tmp_path)
    terms = [
        None,
        ReplayTerm(UPSTREAM[:4]),
        ReplayTerm(UPSTREAM[:3]),
        ReplayTerm(UPSTREAM[:4], "kl", 4.0, "token"),
        ReplayTerm(UPSTREAM[:4], "kl", 2.0, "token"),
        ReplayTerm(UPSTREAM[:4], "kl", 2.0, "step"),
    ]
    fingerprints = {measured.made_from(UPSTREAM, term) for term in terms}
    assert len(fingerprints) == len(terms)


def test_the_epoch_cap_counts_the_tasks_own_examples_only(model_folders):
    capped = job(model_folders["olmo"], steps=100, max_epochs=1)
    assert run(capped).about["steps"] == 5
    assert run(capped, replay=ReplayTerm(UPSTREAM[:4])).about["steps"] == 6


def test_a_row_says_what_it_was_measured_with(model_folders):
    row = run(job(model_folders["olmo"]))
    assert row.settings["recipe"]["steps"] == 4
    assert row.settings["model"]["weights"]
    assert row.about["versions"]["torch"] == torch.__version__
    # Numbers stay numbers in the file's JSON.
    facts = json.loads(json.dumps(row.about, default=str))
    words = {"versions", "base_versions", "data", "optimizer", "date"}
    assert all(isinstance(facts[key], int | float) for key in facts.keys() - words)


def test_losses_in_evaluation_that_are_all_missing_are_nan():
    assert np.isnan(mean_loss(np.array([np.nan, np.nan])))


def test_float32_weights_computed_with_in_bfloat16_forget_exactly_nothing(model_folders):
    scoring = Scoring(max_tokens=24, tokens_per_batch=100, dtype="autocast")
    still = run(job(model_folders["olmo"], scoring, lr=0.0))
    np.testing.assert_array_equal(still.forgetting, np.zeros(16, dtype=np.float32))
    exact = base(model_folders["olmo"]).loss_before
    assert 0 < np.abs(still.loss_before - exact).max() < 0.1
    tuned, *_ = job(model_folders["olmo"], scoring).run(UPSTREAM)
    assert {parameter.dtype for parameter in tuned.parameters()} == {torch.float32}


def test_rows_are_measured_in_the_batches_that_were_found_for_the_base_model(
    model_folders, monkeypatch
):
    monkeypatch.setattr(readers, "fitting_budget", lambda model, examples, careful: 100)
    used = []

    def spy(model, examples, budget, *rest, **options):
        used.append(budget)
        return score(model, examples, budget, *rest, **options)

    monkeypatch.setattr(readers, "score", spy)
    auto = Scoring(max_tokens=24, tokens_per_batch="auto")
    found = run(job(model_folders["olmo"], auto))
    assert set(used) == {100}
    wanted = run(job(model_folders["olmo"], Scoring(max_tokens=24, tokens_per_batch=100)))
    np.testing.assert_array_equal(found.loss_after, wanted.loss_after)
    assert found.settings["scoring"]["tokens_per_batch"] == "auto"


def test_upstream_examples_from_a_file_give_the_same_row(model_folders, tmp_path):
    write_upstream(tmp_path / "u.parquet", UPSTREAM)
    made = job(model_folders["olmo"])
    *_, streamed = made.run(read_upstream(tmp_path / "u.parquet"))
    listed = run(made)
    np.testing.assert_array_equal(streamed.loss_after, listed.loss_after)
    assert streamed.example_ids == listed.example_ids


def test_a_fine_tune_whose_last_step_ruins_the_weights_fails_by_name(model_folders):
    """Its only step has a finite loss; all losses after it are NaN."""
    ruined = job(model_folders["olmo"], lr=1e30, steps=1, warmup_steps=0)
    with pytest.raises(LetheError) as caught:
        run(ruined, title="sums")
    assert str(caught.value).startswith("sums: after fine-tuning the model")
    assert "NaN" in str(caught.value) and "recipe.lr" in str(caught.value)


def test_base_losses_of_a_card_without_hashes_of_settings_are_used(model_folders):
    """Finished runs of earlier versions go on; a card of other weights is refused."""
    card = model_folders["olmo"]
    older = {key: value for key, value in card.items() if key != "files"}
    measured = replace(job(card), base=base(card))
    row = replace(measured.base, settings={**measured.base.settings, "model": older})
    assert run(replace(measured, base=row)).settings["model"] == older
    other = {**older, "weights": {"model.safetensors": "0"}}
    row = replace(measured.base, settings={**measured.base.settings, "model": other})
    with pytest.raises(RowError, match="measured with other settings"):
        run(replace(measured, base=row))
