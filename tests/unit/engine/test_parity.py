"""Losses are the model's own, whatever the architecture, the padding side, the batch, the order."""

import random
import re

import numpy as np
import pytest
import torch
import transformers
from helpers import tiny

from lethe.data.examples import Example
from lethe.data.tokens import tokenise
from lethe.engine import batches, scoring
from lethe.engine.batches import collate, has_plain_head, scored_losses, token_losses
from lethe.engine.scoring import score
from lethe.errors import LetheError

EXACT = {"rtol": 0, "atol": 1e-5}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
COMMON = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": tiny.CONTEXT,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# What an architecture is here for, beside its name: shared heads, windows, scaled or capped logits.
KINDS = {
    "olmo": {},
    "olmo2": {},
    "gpt_neox": {},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": tiny.CONTEXT},
    "llama": {},
    "qwen2": HEADS,
    "qwen3": HEADS,
    "gemma": HEADS,
    "gemma2": HEADS | {"final_logit_softcapping": 3.0, "sliding_window": 16},
    "gpt2": {"n_positions": tiny.CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "cohere": HEADS | {"logit_scale": 0.2},
    "granite": HEADS | {"logits_scaling": 4.0},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 8},
}
CHANGED_LOGITS = {"gemma2", "cohere", "granite"}
# MPT counts from the end of the sequence and takes no position ids.
WITHOUT_POSITIONS = {"mpt"}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """A model with random weights, scaled so that its predictions are far from uniform."""
    kind = request.param
    sizes = {} if kind in ("mpt", "gpt2") else COMMON
    shared = {key: COMMON[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    config = transformers.AutoConfig.for_model(kind, **shared | sizes | KINDS[kind])
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6)
    return made


@pytest.fixture(scope="module")
def pieces():
    """Plain texts and prompt-answer pairs of different lengths, in no order."""
    texts = [Example(text=text) for text in tiny.sentences(5)] + [Example(text="cups")]
    mixed = texts + tiny.pairs(4, seed=1)
    random.Random(0).shuffle(mixed)
    return mixed


def own_loss(model, ids: torch.Tensor, mask: torch.Tensor, start: int) -> float:
    """The model's own mean loss of one padded example: it shifts the labels by itself."""
    begin = int(mask[0].argmax()) + start
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :begin] = -100
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    if model.config.model_type in WITHOUT_POSITIONS:
        given = {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, labels=labels, **given).loss.item()


@pytest.mark.parametrize("side", ["left", "right"])
def test_losses_are_the_models_own_with_either_padding_side(model, tokenizer, pieces, side):
    tokenizer.padding_side = side
    try:
        tokens = tokenise(tokenizer, pieces, tiny.CONTEXT, include_eos=False).examples
        padded = tokenizer.pad({"input_ids": [example.ids for example in tokens]})
    finally:
        tokenizer.padding_side = "right"
    ids, masks = (torch.tensor(padded[key]) for key in ("input_ids", "attention_mask"))
    assert (masks[:, 0 if side == "left" else -1] == 0).any()
    expected = [
        own_loss(model, ids[row : row + 1], masks[row : row + 1], example.start)
        for row, example in enumerate(tokens)
    ]
    # Far from each other, so that a wrong shift, mask or order cannot go unseen.
    assert np.std(expected) > 0.05
    for budget in (1, 4096):
        np.testing.assert_allclose(score(model, tokens, budget).losses, expected, **EXACT)
    order = np.random.default_rng(0).permutation(len(tokens))
    shuffled = score(model, [tokens[i] for i in order], 100).losses
    np.testing.assert_allclose(shuffled, np.array(expected)[order], **EXACT)


def test_every_token_has_the_loss_that_the_models_logits_give_it(model):
    """In a batch of ragged examples; the mean over an example cannot hide an exchange of two."""
    examples = tiny.tokens((23, 14), (9, 1), (tiny.CONTEXT, 1), (2, 1), (7, 7))
    kept = score(model, examples, 4096, by_token=True).by_token
    assert len(kept[-1]) == 0
    for example, found in zip(examples[:-1], kept, strict=False):
        ids = torch.tensor([example.ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, example.start - 1 : -1]
        own = torch.nn.functional.cross_entropy(logits, ids[0, example.start :], reduction="none")
        np.testing.assert_allclose(found, own.numpy(), **EXACT)


@pytest.mark.parametrize("head_tokens", [1, 7, 4096])
def test_chunks_of_the_output_layer_change_no_loss(model, head_tokens):
    batch = collate(tiny.tokens((23, 14), (9, 1), (tiny.CONTEXT, 1)))
    plain = has_plain_head(model, batch)
    assert plain is (model.config.model_type not in CHANGED_LOGITS)
    with torch.inference_mode():
        whole, rows = token_losses(model, batch)
        found, same_rows = scored_losses(model, batch, plain, head_tokens)
    torch.testing.assert_close(found, whole, **EXACT)
    assert torch.equal(rows, same_rows)


@pytest.mark.parametrize("bias", [False, True])
def test_slices_of_the_vocabulary_change_no_loss(bias, monkeypatch):
    """A large vocabulary's logits are summed slice by slice; the last slice is shorter."""
    model = tiny.model("llama")
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(tiny.VOCABULARY))
    batch = collate(tiny.tokens((23, 14), (9, 1), (tiny.CONTEXT, 1)))
    with torch.inference_mode():
        whole, _ = token_losses(model, batch)
        monkeypatch.setattr(batches, "SLICE", 64)
        monkeypatch.setattr(batches, "SLICED_TOKENS", 10)
        monkeypatch.setattr(model.lm_head, "forward", lambda states: states[..., :1])
        found, _ = scored_losses(model, batch, True, 4096)
    torch.testing.assert_close(found, whole, **EXACT)


def test_logits_that_overflow_when_exponentiated_give_finite_losses(monkeypatch):
    model = tiny.model("llama")
    model.lm_head.weight.data.mul_(50)
    batch = collate(tiny.tokens((23, 1)))
    with torch.inference_mode():
        # exp(89) is infinite in float32.
        assert model(batch.ids).logits.max() > 100
        whole, _ = token_losses(model, batch)
        monkeypatch.setattr(batches, "SLICE", 64)
        found, _ = scored_losses(model, batch, True, 4096)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_a_model_that_changes_its_logits_is_named_once(model, caplog):
    score(model, tiny.tokens((9, 1), (8, 1), (7, 1)), 8)
    said = caplog.text.count(f"{type(model).__name__} changes")
    assert said == (model.config.model_type in CHANGED_LOGITS)


def test_no_logits_of_a_whole_batch_are_held(monkeypatch):
    """What the output layer is asked for is counted at the layer itself."""
    model, asked = tiny.model("llama"), []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, out: asked.append(out[..., 0].numel()))
    monkeypatch.setattr(scoring, "HEAD_TOKENS", 5)
    score(model, tiny.tokens((20, 1), (20, 15)), 4096)
    assert max(asked) == 5
    # Every scored token once; one more for the batch and two for the trial of the head.
    assert sum(asked) == 19 + 5 + 1 + 2


class Small(torch.nn.Module):
    """A model on a machine whose memory ends after `room` tokens a pass."""

    def __init__(self, model, room: int, error: Exception):
        super().__init__()
        self.model, self.room, self.error, self.passes = model, room, error, []

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, **given):
        if input_ids.numel() > self.room:
            raise self.error
        self.passes.append(input_ids.numel())
        return self.model(input_ids=input_ids, **given)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_halves_the_batches_and_loses_nothing(error, caplog):
    model, examples = tiny.model("llama"), tiny.tokens(*[(n, 1) for n in range(4, 24)])
    small = Small(model, 60, error).eval()
    found = score(small, examples, 4096, by_token=True)
    expected = score(model, examples, 4096, by_token=True)
    np.testing.assert_allclose(found.losses, expected.losses, **EXACT)
    assert list(map(len, found.by_token)) == list(map(len, expected.by_token))
    assert found.tokens_per_batch <= 60
    # Of 20 examples of up to 23 tokens 10, 5, 3, 2 are tried, the first batch only; each is said.
    assert re.findall(r"(\d+) tokens per batch now", caplog.text) == ["230", "115", "69", "46"]
    # All tokens went through once, but for padding and the trial of the head.
    assert sum(small.passes) < 1.3 * sum(len(example.ids) for example in examples)


def test_one_example_that_does_not_fit_is_an_error_that_names_its_length():
    small = Small(tiny.model("llama"), 10, MemoryError())
    with pytest.raises(LetheError, match=r"one example of 30 tokens .* scoring\.max_tokens"):
        score(small, tiny.tokens((30, 1), (5, 1)), 4096)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    small = Small(tiny.model("llama"), 10, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        score(small, tiny.tokens((30, 1), (5, 1)), 4096)
