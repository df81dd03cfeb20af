import pytest
import torch
import torch.nn.functional as F

from lethe.engine import divergence
from lethe.engine.divergence import (
    LogitTargets,
    StateTargets,
    StoredTargets,
    weighted_divergence,
)

TOKENS, HIDDEN, VOCABULARY = 70, 8, 300


@pytest.fixture
def layers():
    """States and output layers of a trained and a base model, and a scale per token."""
    torch.manual_seed(0)
    states = torch.randn(TOKENS, HIDDEN, requires_grad=True)
    head, base = (torch.nn.Linear(HIDDEN, VOCABULARY) for _ in range(2))
    for layer in (head, base):
        layer.weight.data.mul_(3)
    return states, head, torch.randn(TOKENS, HIDDEN), base, torch.rand(TOKENS)


def targets_of(kind: str, states: torch.Tensor, base: torch.nn.Linear):
    """The base model's distributions in one of the forms that slices work on."""
    if kind == "states":
        return StateTargets(states, base.weight.detach(), base.bias.detach())
    return StoredTargets.of(base(states).detach(), {"all": None, "top 20": 20}[kind])


def dense_divergence(logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
    """PyTorch's own divergence of each row."""
    log, base_log = logits.log_softmax(1), base_logits.log_softmax(1)
    return F.kl_div(log, base_log, reduction="none", log_target=True).sum(1)


@pytest.mark.parametrize("held", [(1 << 23, 64), (VOCABULARY * 16, 16), (16 * 70, 16)])
@pytest.mark.parametrize("kind", ["states", "all", "top 20"])
def test_chunks_and_slices_give_the_dense_value_and_gradient(layers, monkeypatch, held, kind):
    """In one chunk, in chunks of 16 tokens, and in these with slices of 70 words."""
    monkeypatch.setattr(divergence, "HELD_LOGITS", held[0])
    monkeypatch.setattr(divergence, "LEAST_TOKENS", held[1])
    states, head, base_states, base, scales = layers
    targets = targets_of(kind, base_states, base)
    leaves = [states, head.weight, head.bias]
    total, values = weighted_divergence(states, head, targets, scales)
    gradients = torch.autograd.grad(3 * total, leaves)
    logits, base_logits = head(states), base(base_states).detach()
    dense = dense_divergence(logits, base_logits)
    if kind == "top 20":
        dense = targets.divergence(logits)
    torch.testing.assert_close(values, dense, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(3 * (scales * dense).sum(), leaves)
    for gradient, value in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-5, atol=1e-6)


def test_no_more_logits_are_held_than_the_limit(layers, monkeypatch):
    monkeypatch.setattr(divergence, "HELD_LOGITS", 1000)
    monkeypatch.setattr(divergence, "LEAST_TOKENS", 10)
    states, head, base_states, base, scales = layers
    targets, sizes = targets_of("states", base_states, base), []
    inside = F.linear

    def counted(*arguments):
        sizes.append(inside(*arguments).numel())
        return inside(*arguments)

    monkeypatch.setattr(divergence.F, "linear", counted)
    weighted_divergence(states, head, targets, scales)
    assert max(sizes) == 1000 < TOKENS * VOCABULARY


def test_a_model_that_equals_its_base_diverges_by_exactly_nothing(layers):
    states, head, *_, scales = layers
    targets = StateTargets(states.detach(), head.weight.detach(), head.bias.detach())
    total, values = weighted_divergence(states, head, targets, scales)
    assert total == 0 and (values == 0).all()
    gradients = torch.autograd.grad(total, [states, head.weight, head.bias])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("k", [1, 16, 128])
def test_the_most_probable_words_alone_never_give_more_than_all(layers, k):
    """By the log sum inequality; how much less is for the benchmark to say."""
    states, head, base_states, base, _ = layers
    logits, base_logits = head(states), base(base_states)
    whole = dense_divergence(logits, base_logits)
    stored = StoredTargets.of(base_logits, k).divergence(logits)
    assert (stored <= whole + 1e-5).all() and (stored >= -1e-5).all()
    assert stored.mean() < 0.999 * whole.mean()


def test_more_words_err_less(layers):
    states, head, base_states, base, _ = layers
    logits, base_logits = head(states), base(base_states)
    whole = dense_divergence(logits, base_logits)
    errors = []
    for k in (1, 4, 16, 64, 256, VOCABULARY):
        stored = StoredTargets.of(base_logits, k).divergence(logits)
        errors.append((whole - stored).mean().item())
    assert errors == sorted(errors, reverse=True)
    assert abs(errors[-1]) < 1e-6


def test_frozen_output_layers_get_no_gradient(layers):
    states, head, base_states, base, scales = layers
    head.requires_grad_(False)
    total, _ = weighted_divergence(states, head, targets_of("states", base_states, base), scales)
    total.backward()
    assert head.weight.grad is None and head.bias.grad is None
    assert states.grad.abs().sum() > 0


def test_under_autocast_it_is_the_dense_value_up_to_the_reduced_type(layers):
    states, head, base_states, base, scales = layers
    targets = targets_of("states", base_states, base)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, values = weighted_divergence(states, head, targets, scales)
        logits, base_logits = head(states).float(), base(base_states).float()
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, dense_divergence(logits, base_logits))
    gradient = torch.autograd.grad(total, head.weight)[0]
    dense = (scales * dense_divergence(head(states), base(base_states))).sum()
    wanted = torch.autograd.grad(dense, head.weight)[0]
    assert gradient.dtype == torch.float32
    assert F.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0) > 0.999


def test_dense_targets_are_pytorchs_divergence(layers):
    states, head, base_states, base, _ = layers
    logits, base_logits = head(states), base(base_states)
    wanted = dense_divergence(logits, base_logits)
    torch.testing.assert_close(LogitTargets(base_logits).divergence(logits), wanted)
