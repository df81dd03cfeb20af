import pytest
import torch
from helpers import tiny

from lethe.data.examples import Example
from lethe.engine import models, pretraining
from lethe.engine.pretraining import batch_of_step, pack, pretrain
from lethe.engine.schedule import Schedule
from lethe.engine.training_loop import TrainingLoop
from lethe.errors import LetheError


@pytest.fixture(scope="module")
def sequences(tokenizer):
    documents = tokenizer(tiny.sentences(60))["input_ids"]
    return pack(documents, 16, tokenizer.eos_token_id, seed=0)


def fresh(settings, architecture="olmo"):
    return models.from_scratch(architecture, settings, tiny.VOCABULARY, end=0)


def same(model, other) -> bool:
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def interrupted(monkeypatch, at: int):
    """Lets pretraining die, as by a kill, in the step of this number."""
    take, steps = TrainingLoop.take, []

    def dying(*arguments):
        if len(steps) == at:
            raise KeyboardInterrupt
        steps.append(1)
        return take(*arguments)

    monkeypatch.setattr(TrainingLoop, "take", dying)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    architecture, sequences, tmp_path, monkeypatch
):
    settings = tiny.sizes(checkpoint_steps=4)
    whole = fresh(settings, architecture)
    losses = pretrain(whole, sequences, settings, tmp_path / "unused", "t")
    checkpoint = tmp_path / "checkpoint"
    with monkeypatch.context() as patch:
        interrupted(patch, at=10)
        with pytest.raises(KeyboardInterrupt):
            pretrain(fresh(settings, architecture), sequences, settings, checkpoint, "t")
    resumed = fresh(settings, architecture)
    rest = pretrain(resumed, sequences, settings, checkpoint, "t")
    assert len(rest) == 4
    assert rest == losses[8:]
    assert same(resumed, whole)


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"steps": 13}, {"seed": 1}])
def test_a_checkpoint_of_other_settings_is_not_used(sequences, tmp_path, change):
    settings = tiny.sizes(checkpoint_steps=4)
    pretrain(fresh(settings), sequences, settings, tmp_path / "c", "t")
    assert (tmp_path / "c").exists()
    other = tiny.sizes(checkpoint_steps=4, **change)
    from_it, anew = fresh(other), fresh(other)
    losses = pretrain(from_it, sequences, other, tmp_path / "c", "t")
    assert len(losses) == other.steps
    pretrain(anew, sequences, other, tmp_path / "none", "t")
    assert same(from_it, anew)


def test_a_checkpoint_of_another_corpus_or_model_is_not_used(sequences, tmp_path):
    settings = tiny.sizes(checkpoint_steps=4)
    pretrain(fresh(settings), sequences, settings, tmp_path / "c", "t")
    assert len(pretrain(fresh(settings), sequences[1:], settings, tmp_path / "c", "t")) == 12
    pretrain(fresh(settings), sequences, settings, tmp_path / "c", "t")
    assert len(pretrain(fresh(settings, "llama"), sequences, settings, tmp_path / "c", "t")) == 12


def test_a_checkpoint_that_cannot_be_read_is_started_over(sequences, tmp_path):
    settings = tiny.sizes()
    (tmp_path / "c").write_bytes(b"not a checkpoint")
    assert len(pretrain(fresh(settings), sequences, settings, tmp_path / "c", "t")) == 12


def test_pretraining_lowers_the_loss(sequences, tmp_path):
    settings = tiny.sizes(steps=40, lr=1e-2)
    losses = pretrain(fresh(settings), sequences, settings, tmp_path / "c", "t")
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 1


def test_a_loss_that_diverges_is_said_with_what_to_do(sequences, tmp_path):
    settings = tiny.sizes()
    model = fresh(settings)
    model.get_input_embeddings().weight.data[:] = float("nan")
    with pytest.raises(LetheError, match=r"t: loss nan at step 0; lower pretraining\.lr"):
        pretrain(model, sequences, settings, tmp_path / "c", "t")


def test_the_learning_rate_warms_up_and_falls_to_a_twentieth():
    settings = tiny.sizes(steps=102, warmup_steps=2)
    found = [Schedule.of_pretraining(settings).factor(step) for step in range(102)]
    assert found[:3] == pytest.approx([0.5, 1, 1])
    assert found[52] == pytest.approx(0.05 + 0.95 / 2)
    assert found[-1] == pytest.approx(0.05, abs=1e-3)
    assert found[2:] == sorted(found[2:], reverse=True)


def test_packing_shuffles_documents_and_puts_an_end_after_each():
    documents = [[number] * 3 for number in range(1, 8)]
    sequences = pack(documents, 5, end=0, seed=0)
    joined = [token for sequence in sequences for token in sequence]
    assert [len(sequence) for sequence in sequences] == [5] * 5
    assert joined[3::4] == [0] * 6
    assert all(len(set(joined[i : i + 3])) == 1 for i in range(0, 23, 4))
    assert joined[::4] != sorted(joined[::4])
    assert sequences == pack(documents, 5, end=0, seed=0) != pack(documents, 5, end=0, seed=1)


def test_a_corpus_that_fills_no_context_is_refused():
    with pytest.raises(LetheError, match="has 4 tokens, fewer than one context of 5"):
        pack([[1, 2, 3]], 5, end=0, seed=0)


def test_every_epoch_shows_each_sequence_at_most_once_in_a_new_order():
    settings = tiny.sizes(batch=4)
    sequences = [[number, number] for number in range(10)]

    def epoch(number):
        steps = (number * 2, number * 2 + 1)
        return [b.ids[0] for step in steps for b in batch_of_step(sequences, step, settings)]

    assert len(set(epoch(0))) == len(set(epoch(1))) == 8
    assert epoch(0) != epoch(1)


def test_a_corpus_smaller_than_a_batch_is_a_smaller_batch():
    batch = batch_of_step([[1, 2], [3, 4]], 5, tiny.sizes(batch=4))
    assert sorted(tokens.ids for tokens in batch) == [[1, 2], [3, 4]]


def test_a_pair_is_pretrained_on_as_prompt_line_break_answer():
    assert pretraining.whole_text(Example("Q: x\nA: ", " y ")) == "Q: x\nA:\ny"
    assert pretraining.whole_text(Example(text=" as it is ")) == " as it is "


def test_the_corpus_is_tokenised_with_the_tokenizer_of_the_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    documents = [Example(text=text) for text in tiny.sentences(20)]
    loaded, sequences = pretraining.corpus(tmp_path, documents, tiny.sizes())
    assert {len(sequence) for sequence in sequences} == {tiny.CONTEXT}
    expected = pack(tokenizer(tiny.sentences(20))["input_ids"], tiny.CONTEXT, 0, 0)
    assert sequences == expected
    assert loaded.eos_token_id == 0
