import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import tiny

from lethe.config.model_settings import LoRA
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.batches import collate
from lethe.engine.divergence import LogitTargets, StateTargets
from lethe.engine.teacher import (
    LiveTeacher,
    StoredTeacher,
    as_base,
    frozen_copy,
    has_sliceable_head,
    mean_divergences,
)
from lethe.errors import LetheError

EXAMPLES = tiny.tokens((20, 1), (11, 1), (30, 12))


def logits_of(targets) -> torch.Tensor:
    """The logits (S, V) behind a live teacher's targets."""
    if isinstance(targets, LogitTargets):
        return targets.logits
    return F.linear(targets.states, targets.weight, targets.bias)


def dense_logits(model, batch) -> torch.Tensor:
    """The model's own logits (S, V) at the tokens that carry loss."""
    with torch.no_grad():
        return model(input_ids=batch.ids, use_cache=False)[0][:, :-1][batch.mask[:, 1:]]


def moved(model, size: float = 0.05, seed: int = 1):
    """The model with all its trained weights changed."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += size * torch.randn_like(parameter)
    return model


def adapted(architecture: str, **changes):
    """A tiny model with adapters and dropout."""
    return models.add_lora(tiny.model(architecture), LoRA(rank=2, dropout=0.3, **changes), 0)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_with_its_adapters_off_a_model_is_its_base_to_the_bit(architecture):
    batch = collate(EXAMPLES)
    wanted = dense_logits(tiny.model(architecture), batch)
    model = moved(adapted(architecture)).train()
    assert not torch.equal(dense_logits(model, batch), wanted)
    for plain in (True, False):
        teacher = frozen_copy(model, plain)
        assert teacher.model is model, "adapters need no copy"
        targets = teacher.targets(EXAMPLES, batch, batch.mask[:, 1:])
        assert isinstance(targets, StateTargets if plain else LogitTargets)
        torch.testing.assert_close(
            logits_of(targets), wanted, rtol=0, atol=0 if not plain else 1e-5
        )
    states = LiveTeacher(model, True).targets(EXAMPLES, batch, batch.mask[:, 1:]).states
    base = LiveTeacher(tiny.model(architecture), True)
    assert torch.equal(states, base.targets(EXAMPLES, batch, batch.mask[:, 1:]).states)


def test_as_base_leaves_the_model_as_it_was():
    """Frozen adapters stay frozen, and an error does not leave the adapters off."""
    model = adapted("llama").train()
    frozen = [name for name, _ in model.named_parameters() if "layers.0" in name]
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    batch = collate(EXAMPLES)
    moved(model)
    tuned = dense_logits(model.eval(), batch)
    model.train()
    with pytest.raises(KeyError), as_base(model):
        assert not model.training
        raise KeyError
    assert model.training
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert torch.equal(dense_logits(model.eval(), batch), tuned)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_frozen_copy_stays_while_the_model_moves(dtype):
    model, batch = tiny.model("olmo", scale=1), collate(EXAMPLES)
    wanted = dense_logits(model, batch)
    teacher = frozen_copy(model, True, dtype)
    moved(model)
    logits = logits_of(teacher.targets(EXAMPLES, batch, batch.mask[:, 1:]))
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    # Rotary frequencies in bfloat16 would move every position.
    assert {buffer.dtype for buffer in teacher.model.buffers() if buffer.is_floating_point()} == {
        torch.float32
    }
    close = {"rtol": 0, "atol": 1e-5} if dtype is None else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(logits.float(), wanted, **close)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_tiny_models_have_a_head_that_can_be_sliced(architecture):
    assert has_sliceable_head(tiny.model(architecture), EXAMPLES[0])


def test_an_adapter_on_the_output_layer_is_more_than_its_weights():
    assert not has_sliceable_head(adapted("llama", targets=["lm_head"]), EXAMPLES[0])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mpt"])
def test_stored_distributions_are_the_live_ones(architecture, plain):
    """All words, and the right positions in another order and another batch."""
    model = tiny.model(architecture)
    live = LiveTeacher(model, plain)
    stored = StoredTeacher(live, [*EXAMPLES, EXAMPLES[0]], None)
    examples = [EXAMPLES[2], EXAMPLES[0]]
    batch = collate(examples)
    other = dense_logits(tiny.model(architecture, seed=1), batch)
    wanted = LogitTargets(dense_logits(model, batch)).divergence(other)
    targets = stored.targets(examples, batch, batch.mask[:, 1:])
    torch.testing.assert_close(targets.divergence(other), wanted, rtol=1e-5, atol=1e-5)
    few = StoredTeacher(live, EXAMPLES, 7).targets(examples, batch, batch.mask[:, 1:])
    assert few.words.shape == (len(wanted), 7)
    assert (few.divergence(other) <= wanted + 1e-4).all()


def test_stored_distributions_of_other_positions_are_refused():
    stored = StoredTeacher(LiveTeacher(tiny.model("llama"), True), EXAMPLES, 5)
    batch = collate(EXAMPLES)
    with pytest.raises(LetheError, match="replay.teacher to live"):
        stored.targets(EXAMPLES, batch, ~batch.mask[:, 1:])


@pytest.mark.parametrize("plain", [True, False])
def test_the_mean_divergence_of_examples_is_the_dense_one(plain):
    base, tuned = tiny.model("gpt_neox"), moved(tiny.model("gpt_neox"), 0.02).train()
    examples = [EXAMPLES[0], Tokens([5], 1), *EXAMPLES[1:]]
    teacher = LiveTeacher(base, plain)
    values = mean_divergences(tuned, teacher, examples, 40)
    assert values.dtype == np.float32 and tuned.training
    assert np.isnan(values).tolist() == [False, True, False, False]
    for value, example in zip(values[[0, 2, 3]], EXAMPLES, strict=True):
        batch = collate([example])
        log, base_log = (dense_logits(m, batch).log_softmax(1) for m in (tuned, base))
        wanted = F.kl_div(log, base_log, reduction="none", log_target=True).sum(1).mean()
        np.testing.assert_allclose(value, wanted, rtol=1e-4)


def test_the_base_model_does_not_diverge_from_itself():
    model = tiny.model("olmo2")
    values = mean_divergences(model, LiveTeacher(model, True), EXAMPLES, 1000)
    np.testing.assert_array_equal(values, 0)
