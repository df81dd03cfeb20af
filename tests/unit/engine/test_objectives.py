from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny

from lethe.config.model_settings import LoRA, Recipe
from lethe.data.tokens import Tokens
from lethe.engine import divergence, models
from lethe.engine.batches import collate
from lethe.engine.mixture import mix
from lethe.engine.objectives import (
    ReplayTerm,
    Step,
    make_objective,
    plan_steps,
    prompt_positions,
)
from lethe.engine.teacher import LiveTeacher, mean_divergences
from lethe.engine.training import fine_tune
from lethe.errors import LetheError

NEW = tiny.tokens((20, 4), (11, 8), (30, 12), (9, 7), seed=1)
REPLAYED = tiny.tokens((20, 1), (15, 1), seed=2)
STEP = Step(NEW, REPLAYED)


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": 8, "batch": 4, "lr": 1e-2, "warmup_steps": 0} | changes)


def moved(model):
    """The model with its weights changed, so that it diverges from its base."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn_like(parameter)
    return model


def losses_of(model, base, example: Tokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and KL(base || model) at all positions but the first, of the dense logits."""
    batch = collate([example])
    log = model(input_ids=batch.ids, use_cache=False)[0][0, :-1].float().log_softmax(1)
    with torch.no_grad():
        base_log = base(input_ids=batch.ids, use_cache=False)[0][0, :-1].float().log_softmax(1)
    text = F.nll_loss(log, batch.ids[0, 1:], reduction="none")
    return text, F.kl_div(log, base_log, reduction="none", log_target=True).sum(1)


def dense_loss(model, base, step: Step, term: ReplayTerm, settings: Recipe) -> torch.Tensor:
    """The step's loss as its definition has it, an example at a time."""

    def size(tokens: torch.Tensor) -> float:
        return float(len(tokens)) if settings.average == "token" else 1.0

    def total(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.sum() if settings.average == "token" else tokens.mean()

    new = new_size = prompt = prompt_size = replayed = replayed_size = 0.0
    for example in step.new:
        text, kl = losses_of(model, base, example)
        first = example.start - 1
        new, new_size = new + total(text[first:]), new_size + size(text[first:])
        if first:
            prompt, prompt_size = prompt + total(kl[:first]), prompt_size + size(kl[:first])
    for example in step.replayed:
        text, kl = losses_of(model, base, example)
        values = {"text": text, "kl": kl, "both": (text + kl) / 2}[term.objective]
        values = values[example.start - 1 :]
        weight = example.weight
        replayed = replayed + weight * total(values)
        replayed_size += (1 if term.dose == "step" else weight) * size(values)
    if term.dose == "step":
        loss = new / new_size + term.weight * replayed / replayed_size
    else:
        loss = (new + term.weight * replayed) / (new_size + term.weight * replayed_size)
    return loss + (settings.prompt_kl or 0.0) * prompt / prompt_size


def step_loss(objective, model, step: Step, size: int | None) -> torch.Tensor:
    """The sum of the losses of the step's passes."""
    losses = []
    for parts in objective.parts(step, size):
        losses += [objective.loss(model, part, "cpu") for part in parts]
    return sum(losses)


def compare(model, base, term: ReplayTerm, settings: Recipe, sizes=(None, 1), step=STEP):
    """The objective's loss and gradient with the dense ones, in whole and in passes.

    Gradients are compared relative to the largest entry, as float32 rounds in proportion.
    """
    objective = make_objective(model, settings, [step], term)
    moved(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted_loss = dense_loss(model, base, step, term, settings)
    wanted = torch.autograd.grad(wanted_loss, parameters, allow_unused=True)
    largest = max(gradient.abs().max() for gradient in wanted if gradient is not None)
    for size in sizes:
        loss = step_loss(objective, model, step, size)
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-5, atol=1e-5)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for gradient, value in zip(gradients, wanted, strict=True):
            if value is None:
                assert gradient is None
                continue
            assert (gradient - value).abs().max() <= 1e-6 * max(1.0, largest)


@pytest.mark.parametrize("held", [1 << 23, 2000])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_gradient_of_kl_is_that_of_a_dense_computation(architecture, held, monkeypatch):
    """In one piece, and in chunks of 16 tokens with slices of 125 words."""
    monkeypatch.setattr(divergence, "HELD_LOGITS", held)
    monkeypatch.setattr(divergence, "LEAST_TOKENS", 16)
    term = ReplayTerm(REPLAYED, "kl", 4.0, "token")
    model, base = (tiny.model(architecture, scale=2) for _ in range(2))
    compare(model, base, term, recipe())


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("dose", ["token", "step"])
@pytest.mark.parametrize("objective", ["text", "kl", "both"])
@pytest.mark.parametrize("prompt_kl", [None, 0.7])
def test_a_step_minimises_what_its_definition_says(average, dose, objective, prompt_kl):
    """Passes of one example give the same as one pass."""
    term = ReplayTerm(REPLAYED, objective, 2.5, dose)
    model, base = (tiny.model("llama", scale=2) for _ in range(2))
    compare(model, base, term, recipe(average=average, prompt_kl=prompt_kl))


@pytest.mark.parametrize("average", ["token", "example"])
@pytest.mark.parametrize("dose", ["token", "step"])
@pytest.mark.parametrize("objective", ["text", "kl", "both"])
def test_a_replayed_example_counts_as_often_as_its_weight_says(average, dose, objective):
    weighted = [replace(REPLAYED[0], weight=0.3), replace(REPLAYED[1], weight=1.7)]
    term = ReplayTerm(weighted, objective, 2.5, dose)
    model, base = (tiny.model("llama", scale=2) for _ in range(2))
    compare(model, base, term, recipe(average=average), step=Step(NEW, weighted))


@pytest.mark.parametrize("average", ["token", "example"])
def test_an_example_of_weight_2_is_that_example_twice(average):
    twice = Step(NEW, [REPLAYED[0], *REPLAYED])
    weighted = Step(NEW, [replace(REPLAYED[0], weight=2.0), REPLAYED[1]])
    model = tiny.model("llama", scale=2)
    objective = make_objective(
        model, recipe(average=average), [twice], ReplayTerm(REPLAYED, "kl", 4.0, "token")
    )
    moved(model)
    losses = [step_loss(objective, model, step, None) for step in (twice, weighted)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)


def test_one_example_of_a_step_keeps_its_weight():
    """A mean over it alone would cancel the weight."""
    model = tiny.model("llama", scale=2)
    term = ReplayTerm(REPLAYED[:1], "kl", 4.0, "step")
    objective = make_objective(model, recipe(), [STEP], term)
    moved(model)
    without, once, thrice = (
        step_loss(objective, model, Step(NEW, replayed), None)
        for replayed in ([], REPLAYED[:1], [replace(REPLAYED[0], weight=3.0)])
    )
    torch.testing.assert_close(thrice - without, 3 * (once - without), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_are_their_own_teacher(checkpointing):
    """Also where activations are computed again, after the adapters were off."""
    base = tiny.model("llama", scale=2)
    model = models.add_lora(tiny.model("llama", scale=2), LoRA(rank=2, dropout=0.0), 0)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    term = ReplayTerm(REPLAYED, "both", 2.0, "token")
    compare(model, base, term, recipe(prompt_kl=0.5))


def test_a_model_with_an_adapter_on_its_output_layer_uses_its_own_logits():
    base = tiny.model("olmo", scale=2)
    lora = LoRA(rank=2, dropout=0.0, targets=["lm_head", "q_proj"])
    model = models.add_lora(tiny.model("olmo", scale=2), lora, 0)
    term = ReplayTerm(REPLAYED, "kl", 2.0, "step")
    compare(model, base, term, recipe(prompt_kl=0.5))


@pytest.mark.parametrize("prompt_kl", [None, 0.5])
def test_a_stored_teacher_with_all_words_gives_the_same(prompt_kl):
    term = ReplayTerm(REPLAYED, "kl", 4.0, "step", teacher="stored")
    model, base = (tiny.model("mpt", scale=2) for _ in range(2))
    compare(model, base, term, recipe(prompt_kl=prompt_kl))


@pytest.mark.parametrize("prompt_kl", [None, 0.5])
def test_stored_distributions_are_those_of_the_base_model_before_its_copy_is_rounded(prompt_kl):
    term = ReplayTerm(REPLAYED, "kl", 4.0, "step", teacher="stored", teacher_dtype="bfloat16")
    model, base = (tiny.model("llama", scale=2) for _ in range(2))
    settings = recipe(prompt_kl=prompt_kl)
    wanted = make_objective(tiny.model("llama", scale=2), settings, [STEP], term)
    given = make_objective(moved(model), settings, [STEP], term, base)
    batch = collate(REPLAYED)
    positions = batch.mask[:, 1:]
    expected = wanted.replay_teacher.targets(REPLAYED, batch, positions)
    actual = given.replay_teacher.targets(REPLAYED, batch, positions)
    assert torch.equal(actual.log_shares, expected.log_shares)


def test_text_of_weight_1_by_tokens_is_the_mixture():
    model = moved(tiny.model("llama"))
    wanted, gradients = [], []
    for dose in ("mixed", "token"):
        term = ReplayTerm(REPLAYED, "text", 1.0, dose)
        for step in plan_steps(NEW, term, 6):
            loss = step_loss(make_objective(model, recipe(), [step], term), model, step, None)
            wanted.append(loss)
            gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*wanted)
    for ours, mixed in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, mixed, rtol=1e-4, atol=1e-5)


def test_prompt_positions_are_the_tokens_before_the_loss():
    batch = collate([Tokens([1, 2, 3, 4, 5], 3), Tokens([1, 2], 1)])
    assert prompt_positions(batch).tolist() == [[True, True, False, False], [False] * 4]


def test_without_a_teacher_nothing_is_copied(monkeypatch):
    monkeypatch.setattr("lethe.engine.objectives.frozen_copy", None)
    monkeypatch.setattr("lethe.engine.objectives.has_sliceable_head", None)
    for term in (None, ReplayTerm(REPLAYED), ReplayTerm(REPLAYED, "kl", 0.0, "step")):
        make_objective(tiny.model("llama"), recipe(), [STEP], term)


def numbered(count: int, offset: int = 0) -> list[Tokens]:
    return [Tokens([offset + i, 1], 1) for i in range(count)]


def numbers(examples) -> list[int]:
    return [example.ids[0] for example in examples]


@pytest.mark.parametrize("replayed, wanted", [(5, [1] * 5), (2, [0, 0, 1, 0, 1]), (8, None)])
def test_steps_share_the_replayed_examples_evenly(replayed, wanted):
    """As many steps as without replay; each example once, in its order."""
    new, old = numbered(20), numbered(replayed, 100)
    steps = plan_steps(new, ReplayTerm(old, "kl", 4.0, "step"), 4)
    assert [step.new for step in steps] == [step.new for step in plan_steps(new, None, 4)]
    counts = [len(step.replayed) for step in steps]
    assert wanted is None or counts == wanted
    assert max(counts) - min(counts) <= 1
    together = [example for step in steps for example in step.replayed]
    assert numbers(together) == numbers(old)


def test_by_tokens_the_stream_is_that_of_the_mixture():
    new, old = numbered(24), numbered(3, 100)
    mixed = plan_steps(new, ReplayTerm(old), 4)
    stream = [example for step in mixed for example in step.new]
    assert numbers(stream) == numbers(mix(new, old, "add"))
    assert not any(step.replayed for step in mixed)
    for term, apart in ((ReplayTerm(old, "kl", 4.0, "token"), False), (ReplayTerm(old), True)):
        steps = plan_steps(new, term, 4, apart)
        assert len(steps) == len(mixed)
        for step, whole in zip(steps, mixed, strict=True):
            assert numbers(step.new) == [n for n in numbers(whole.new) if n < 100]
            assert numbers(step.replayed) == [n for n in numbers(whole.new) if n >= 100]


def test_swapped_examples_make_room():
    new, old = numbered(20), numbered(4, 100)
    for dose in ("token", "step"):
        steps = plan_steps(new, ReplayTerm(old, "kl", 4.0, dose, "swap"), 4)
        assert sum(len(step.new) + len(step.replayed) for step in steps) == 20


def test_a_term_that_weighs_nothing_leaves_the_steps_as_they_are():
    steps = plan_steps(numbered(9), ReplayTerm(numbered(3, 100), "kl", 0.0, "step"), 4)
    assert steps == plan_steps(numbered(9), None, 4)


def test_examples_without_loss_take_no_part():
    empty = Tokens([7], 1)
    term = ReplayTerm([empty, *numbered(2, 100)], "kl", 1.0, "step")
    steps = plan_steps([empty, *numbered(4)], term, 2)
    assert [numbers(step.new) for step in steps] == [[0, 1], [2, 3]]
    assert [numbers(step.replayed) for step in steps] == [[100], [101]]


def test_a_step_of_nothing_that_weighs_has_no_pass():
    objective = make_objective(tiny.model("llama"), recipe(), [STEP], None)
    term = ReplayTerm(REPLAYED, "kl", 0.0, "token")
    objective = make_objective(tiny.model("llama"), recipe(), [STEP], term)
    assert objective.parts(Step([], REPLAYED), None) == [[], []]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "kl"}, "replay.dose mixed goes with objective text"),
        ({"weight": 4.0}, "replay.dose mixed goes with objective text"),
        ({"weight": -1.0, "dose": "step"}, "replay.weight: -1.0"),
        ({"dose": "tokens"}, "replay.dose: 'tokens' is none of mixed, token, step"),
        ({"teacher": "dead"}, "replay.teacher: 'dead'"),
        ({"weights": []}, "replay.dose mixed counts all examples alike"),
        ({"weights": [1.0], "dose": "token"}, "0 examples need as many finite weights above 0"),
    ],
)
def test_terms_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(LetheError, match=message):
        ReplayTerm((), **changes)


def tuned_state(term: ReplayTerm | None, **changes) -> dict:
    """Weights of a tiny model after a fine-tune of 12 new examples."""
    model = tiny.model("llama", scale=1)
    examples = tiny.tokens(*[(16, 5)] * 12, seed=3)
    fine_tune(model, examples, recipe(micro_batch=2, **changes), "t", replay=term)
    return model.state_dict()


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_weights_must_be_numbers_above_0():
    for weights in ([1.0, 0.0], [1.0, float("inf")], [float("nan"), 1.0]):
        with pytest.raises(LetheError, match="2 examples need as many finite weights above 0"):
            ReplayTerm(REPLAYED, dose="step", weights=weights)


def test_a_term_that_weighs_nothing_gives_the_bytes_without_replay():
    term = ReplayTerm(REPLAYED, "kl", 0.0, "step")
    assert equal(tuned_state(term), tuned_state(None))
    assert not equal(tuned_state(replace(term, weight=1.0)), tuned_state(None))


def test_the_mixture_gives_the_bytes_of_a_stream_that_holds_the_replayed_examples():
    """As before replay had other objectives."""
    model = tiny.model("llama", scale=1)
    stream = mix(tiny.tokens(*[(16, 5)] * 12, seed=3), REPLAYED, "add")
    fine_tune(model, stream, recipe(micro_batch=2), "t")
    assert equal(tuned_state(ReplayTerm(REPLAYED)), model.state_dict())


@pytest.mark.parametrize("dose", ["token", "step"])
def test_kl_holds_a_model_near_its_base(dose):
    """Nearer on the replayed examples than without replay, and than text replay leaves it."""
    base = tiny.model("llama", scale=2)
    distances = []
    for term in (
        ReplayTerm(REPLAYED * 8, "kl", 4.0, dose),
        ReplayTerm(REPLAYED * 8, "text", 4.0, dose),
        None,
    ):
        model = tiny.model("llama", scale=2)
        fine_tune(model, tiny.tokens(*[(16, 5)] * 64, seed=3), recipe(), "t", replay=term)
        distances.append(mean_divergences(model, LiveTeacher(base, True), REPLAYED, 100).mean())
    assert 0 < distances[0] < 0.8 * min(distances[1:])


def test_prompt_kl_needs_no_upstream_data():
    """It works beside the mixture too, whose replayed examples are then kept apart."""
    plain = tuned_state(None)
    prompt = tuned_state(None, prompt_kl=2.0)
    both = tuned_state(ReplayTerm(REPLAYED), prompt_kl=2.0)
    assert not equal(plain, prompt) and not equal(prompt, both)
    assert equal(prompt, tuned_state(None, prompt_kl=2.0))


@pytest.mark.parametrize("dose", ["mixed", "token", "step"])
def test_replay_that_takes_the_place_of_every_new_example_is_refused(dose):
    term = ReplayTerm(NEW, objective="text", dose=dose, accounting="swap")
    with pytest.raises(LetheError, match="replay.ratio: 4 replayed examples take the places of"):
        plan_steps(NEW, term, batch=4)
