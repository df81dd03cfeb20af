"""A matrix beside one layer that only prompts like the training prompts use."""

import numpy as np
import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import Memory, Recipe, Router
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.batches import collate, forward_logits, model_of, token_losses
from lethe.engine.generation import generate
from lethe.engine.memory_routing import (
    PromptRouter,
    feature_layer,
    fit_router,
    mean_over_spans,
    prompt_features,
    prompt_span,
)
from lethe.engine.scoring import score
from lethe.engine.teacher import LiveTeacher, as_base, has_sliceable_head, mean_divergences
from lethe.engine.training import fine_tune
from lethe.errors import LetheError

NEW = tiny.tokens(*[(12, 8)] * 6, seed=1)
UPSTREAM = tiny.tokens(*[(14, 1)] * 24, seed=2)
RECIPE = Recipe(
    method="memory", steps=8, batch=3, lr=1e-2, warmup_steps=1, max_grad_norm=1e6, max_epochs=None
)
SETTINGS = Memory(prompt_tokens=8, quantile=0.95)


def memory_model(architecture: str, settings: Memory = SETTINGS):
    base = tiny.model(architecture)
    router = None
    if settings.routing:
        router = fit_router(base, settings, training=NEW, replayable=UPSTREAM, seed=3)
    return models.add_memory(base, settings, router)


def trained(architecture: str, settings: Memory = SETTINGS):
    model = memory_model(architecture, settings)
    recipe = RECIPE.model_copy(update={"memory": settings})
    fine_tune(model, NEW * 4, recipe, "memory")
    return model


def routed(model, examples) -> list[bool]:
    layer = feature_layer(model, None)
    features = prompt_features(model, layer, examples, model.prompt_tokens)
    return model.router.routed(features).tolist()


def logits_of(model, examples) -> torch.Tensor:
    batch = collate(examples)
    model.announce_prompts(examples)
    with torch.no_grad():
        return forward_logits(model_of(model), batch.ids)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_what_is_not_routed_is_the_base_model_to_the_bit(architecture):
    model = trained(architecture)
    base = tiny.model(architecture)
    mixed = [NEW[0], UPSTREAM[0], NEW[1], *UPSTREAM[1:5]]
    decisions = routed(model, mixed)
    assert decisions[0]
    assert decisions[2]
    assert not all(decisions)
    with torch.no_grad():
        expected = forward_logits(base, collate(mixed).ids)
    values = logits_of(model, mixed)
    for row, decision in enumerate(decisions):
        assert torch.equal(values[row], expected[row]) is not decision


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_losses_of_what_is_not_routed_do_not_change_and_the_new_task_is_learned(architecture):
    model = trained(architecture)
    base = tiny.model(architecture)
    examples = [*NEW, *UPSTREAM]
    before = score(base, examples, tokens_per_batch=60).losses
    after = score(model, examples, tokens_per_batch=60).losses
    decisions = np.array(routed(model, examples))
    assert decisions[: len(NEW)].all()
    assert (after[: len(NEW)] < before[: len(NEW)]).all()
    assert (after[~decisions] - before[~decisions] == 0).all()
    # At most 1 - quantile of the upstream prompts that set the overlap.
    assert decisions[len(NEW) :].mean() <= 0.05


def test_each_example_of_a_batch_uses_the_columns_of_its_own_mask():
    model = memory_model("llama")
    batch = collate(NEW[:2])
    losses, owners = token_losses(model.train(), batch)
    losses[owners == 0].sum().backward()
    columns = model.memory.grad.abs().sum(0) > 0
    features = prompt_features(model, feature_layer(model, None), NEW[:2], 8)
    masks = model.router.masks_of(features)
    assert torch.equal(columns, masks[0])
    assert not torch.equal(masks[0], masks[1])


def test_a_mask_holds_the_strongest_features_through_a_fixed_permutation():
    router = PromptRouter(torch.full((10,), 2.0), count=3, seed=5)
    features = torch.full((1, 10), 2.0)
    features[0, [1, 4, 7]] = torch.tensor([9.0, -9.0, 5.0])
    mask = router.masks_of(features)
    assert mask[0].nonzero()[:, 0].tolist() == sorted(router.permutation[[1, 4, 7]].tolist())
    same = PromptRouter(torch.full((10,), 2.0), count=3, seed=5)
    assert torch.equal(same.masks_of(features), mask)


def test_the_nearest_stored_mask_decides_and_the_threshold_is_a_quantile():
    router = PromptRouter(torch.zeros(8), count=2, seed=0)
    stored = torch.eye(8)[:3] + torch.eye(8)[1:4]
    router.store(stored)
    numbers, overlaps = router.nearest(stored)
    assert overlaps.tolist() == [1, 1, 1]
    assert torch.equal(router.masks[numbers], router.masks_of(stored))
    half = torch.eye(8)[3:4] + torch.eye(8)[6:7]
    neither = torch.eye(8)[5:6] + torch.eye(8)[6:7]
    assert router.nearest(half)[1].tolist() == [0.5]
    router.set_threshold(torch.cat([neither, neither, neither, half]), quantile=0.75)
    assert router.threshold == 0
    assert router.routed(half).tolist() == [True]
    router.set_threshold(torch.cat([neither, half]), quantile=0.75)
    assert router.threshold == 0.5
    assert router.routed(torch.cat([half, stored[:1]])).tolist() == [False, True]


def test_plain_text_has_its_first_tokens_for_a_prompt():
    assert prompt_span(Tokens(list(range(20)), 1), 8) == (0, 8)
    assert prompt_span(Tokens(list(range(5)), 1), 8) == (0, 5)
    assert prompt_span(Tokens(list(range(20)), 12), 8) == (0, 12)
    # The tokens after them change nothing.
    model = memory_model("llama")
    layer = feature_layer(model, None)
    text = UPSTREAM[0]
    changed = Tokens([*text.ids[:8], *[5] * 6], 1)
    features = prompt_features(model, layer, [text, changed], 8)
    assert torch.equal(features[0], features[1])


def test_means_are_over_the_prompt_only():
    inputs = torch.arange(12.0).reshape(1, 6, 2)
    inputs[0, 4:] = float("nan")
    assert mean_over_spans(inputs, [(1, 3)]).tolist() == [[3.0, 4.0]]


def test_a_replayed_text_reaches_the_columns_that_a_wrong_route_would_use():
    model = memory_model("gpt_neox")
    losses, _ = token_losses(model.train(), collate(UPSTREAM[:1]))
    losses.sum().backward()
    columns = model.memory.grad.abs().sum(0) > 0
    features = prompt_features(model, feature_layer(model, None), UPSTREAM[:1], 8)
    number = model.router.nearest(features)[0][0]
    assert torch.equal(columns, model.router.masks[number])


def test_without_routing_every_example_uses_the_whole_matrix():
    model = trained("llama", Memory(routing=False))
    base = tiny.model("llama")
    before = score(base, UPSTREAM, tokens_per_batch=60).losses
    after = score(model, UPSTREAM, tokens_per_batch=60).losses
    assert (after != before).all()
    assert model.stored_bytes == 4 * model.memory.numel()


def test_without_adapters_it_is_the_base_model_to_the_bit():
    model = trained("olmo")
    base = tiny.model("olmo")
    with as_base(model), torch.no_grad():
        model.announce_prompts(NEW)
        values = forward_logits(model_of(model), collate(NEW).ids)
        assert torch.equal(values, forward_logits(base, collate(NEW).ids))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["memory"]
    teacher = LiveTeacher(model, has_sliceable_head(model, NEW[0]))
    divergences = mean_divergences(model, teacher, [*NEW, *UPSTREAM], 60)
    decisions = np.array(routed(model, [*NEW, *UPSTREAM]))
    assert (divergences[decisions] > 0).all()
    assert np.abs(divergences[~decisions]).max() < 1e-6


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_answers_are_routed_by_their_prompts_whatever_the_padding(architecture, tokenizer):
    model = trained(architecture)
    # So that the answers differ surely.
    model.memory.data.mul_(30)
    base = tiny.model(architecture)
    # A plain text of so many tokens has all of them for a prompt, as a question has.
    texts = [Tokens(example.ids[:5], 5) for example in UPSTREAM[:4]]
    decisions = routed(model, texts)
    prompts = [example.ids[: example.start] for example in NEW]
    prompts += [example.ids for example in texts]
    budget = 20 * len(prompts)
    ours = generate(model, tokenizer, prompts, 6, budget)
    theirs = generate(base, tokenizer, prompts, 6, budget)
    assert ours[: len(NEW)] != theirs[: len(NEW)]
    for number, decision in enumerate(decisions, start=len(NEW)):
        if not decision:
            assert ours[number] == theirs[number]
    assert not all(decisions)


def test_recomputed_activations_are_routed_as_before():
    recipe = RECIPE.model_copy(update={"gradient_checkpointing": True})
    plain = memory_model("llama")
    fine_tune(plain, NEW * 4, RECIPE, "memory")
    recomputed = memory_model("llama")
    fine_tune(recomputed, NEW * 4, recipe, "memory")
    assert torch.allclose(plain.memory, recomputed.memory, atol=1e-6)
    assert plain.memory.abs().max() > 0


def test_a_layer_that_is_not_there_is_refused_with_some_that_are():
    with pytest.raises(LetheError, match=r"'mlp.down' of a memory .* model.layers.1.mlp.down_proj"):
        feature_layer(tiny.model("llama"), "mlp.down")
    layer = feature_layer(tiny.model("llama"), "model.layers.0.mlp.down_proj")
    assert layer.in_features == 64


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("olmo", "model.layers.1.mlp.down_proj"),
        ("olmo2", "model.layers.1.mlp.down_proj"),
        ("llama", "model.layers.1.mlp.down_proj"),
        ("gpt_neox", "gpt_neox.layers.1.mlp.dense_4h_to_h"),
        ("mpt", "transformer.blocks.1.ffn.down_proj"),
    ],
)
def test_the_usual_layer_is_the_last_down_projection(architecture, name):
    model = tiny.model(architecture)
    assert feature_layer(model, None) is model.get_submodule(name)


def test_a_router_without_upstream_examples_is_refused():
    with pytest.raises(LetheError, match="replayable upstream examples"):
        fit_router(tiny.model("llama"), Router(), training=NEW, replayable=[], seed=0)
