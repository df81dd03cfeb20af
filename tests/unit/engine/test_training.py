import copy
import math

import pytest
import torch
from helpers import tiny

from lethe.config.model_settings import LoRA, Recipe
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.batches import collate, token_losses
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.objectives import Objective, Part
from lethe.engine.schedule import Schedule
from lethe.engine.training import fine_tune, planned_steps, stream
from lethe.engine.training_loop import TrainingLoop
from lethe.errors import LetheError


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": 8, "batch": 4, "lr": 1e-2, "warmup_steps": 2} | changes)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def factors(steps: int, **changes) -> list[float]:
    schedule = Schedule.of_recipe(recipe(**changes), steps)
    return [schedule.factor(step) for step in range(steps)]


def test_the_learning_rate_warms_up_linearly_and_decays_linearly_to_zero():
    found = factors(14, warmup_steps=4, decay="linear")
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == pytest.approx([1 - i / 10 for i in range(10)])


def test_cosine_decay_is_half_way_down_in_the_middle():
    found = factors(14, warmup_steps=4, decay="cosine")
    assert found[4] == pytest.approx(1)
    assert found[9] == pytest.approx(0.5)
    assert found[13] == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 10))


def test_a_constant_learning_rate_stays_after_its_warm_up():
    assert factors(6, warmup_steps=1, decay="constant") == pytest.approx([0.5, 1, 1, 1, 1, 1])


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    assert factors(3, warmup_steps=9) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("examples", "max_epochs", "expected"),
    [(1000, 3, 100), (40, 3, 30), (41, 3, 31), (41, None, 100), (1, 0.1, 1)],
)
def test_epochs_cap_the_steps(examples, max_epochs, expected):
    assert planned_steps(recipe(steps=100, max_epochs=max_epochs), examples) == expected


def test_a_group_of_tasks_takes_its_own_steps():
    few = recipe(steps=100, max_epochs=None, group_steps={"mix": 1000})
    assert [planned_steps(few, 40, group) for group in ("", "mmlu", "mix")] == [100, 100, 1000]
    assert planned_steps(few.model_copy(update={"max_epochs": 3}), 40, "mix") == 30


def test_a_stream_goes_through_every_example_once_an_epoch():
    order = stream(5, 12, seed=3, title="add")
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert len(order) == 12
    assert order == stream(5, 12, seed=3, title="add") != stream(5, 12, seed=4, title="add")
    assert order[:5] != order[5:10]


def test_a_stream_of_nothing_is_an_error_and_not_an_endless_loop():
    with pytest.raises(LetheError, match="no training example"):
        stream(0, 8, seed=0, title="add")


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_training_lowers_the_loss_of_what_is_trained_on(architecture):
    examples = tiny.tokens(*[(20, 4)] * 4) * 10
    trained = fine_tune(tiny.model(architecture, scale=1), examples, recipe(steps=10), "t")
    assert trained.steps == 10
    assert trained.last_loss < trained.first_loss - 0.05
    assert trained.tokens == 800


def test_the_first_step_is_adamw_on_the_mean_loss_of_the_scored_tokens():
    """One step by hand: transformers' loss, torch's AdamW at the warm-up's rate, clipping."""
    examples = tiny.tokens((12, 8), (12, 8))
    chosen = recipe(lr=1e-3, warmup_steps=1, batch=2, weight_decay=0.1, max_grad_norm=0.5)
    model = tiny.model("llama")
    by_hand = copy.deepcopy(model).train()
    fine_tune(model, examples, chosen, "t")

    ids = torch.tensor([example.ids for example in examples])
    labels = ids.clone()
    labels[:, :8] = -100
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=5e-4, weight_decay=0.1)
    by_hand(input_ids=ids, labels=labels).loss.backward()
    torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 0.5)
    optimizer.step()
    for name, expected in weights(by_hand).items():
        torch.testing.assert_close(weights(model)[name], expected, rtol=0, atol=1e-6)


def test_loss_is_averaged_over_tokens_or_over_examples_as_the_recipe_says():
    examples = tiny.tokens((30, 1), (30, 28))
    model = tiny.model("olmo")
    means = [token_losses(model, collate([example]))[0].mean().item() for example in examples]
    part = Part(examples, text=1.0)
    by_example = Objective(recipe(average="example")).loss(model, part, "cpu").item()
    by_token = Objective(recipe(average="token")).loss(model, part, "cpu").item()
    assert by_example == pytest.approx(sum(means) / 2, abs=1e-5)
    assert by_token == pytest.approx((29 * means[0] + 2 * means[1]) / 31, abs=1e-5)
    assert abs(by_example - by_token) > 1e-2


def test_gradients_are_clipped_to_the_recipes_norm(monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, limit):
        clip(parameters, limit)
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in parameters]).item())

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    examples = tiny.tokens(*[(20, 1)] * 8)
    fine_tune(tiny.model("olmo"), examples, recipe(max_grad_norm=1e-3), "t")
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)


def test_lora_trains_its_adapters_and_nothing_else():
    model = models.add_lora(tiny.model("llama"), LoRA(rank=2), seed=0)
    before = weights(model)
    fine_tune(model, tiny.tokens(*[(20, 4)] * 12), recipe(), "t")
    changed = {n for n, value in weights(model).items() if not torch.equal(value, before[n])}
    assert changed == {name for name in before if "lora_" in name}


def test_adapters_depend_on_the_seed_alone():
    def adapters(seed):
        return weights(models.add_lora(tiny.model("llama"), LoRA(rank=2), seed))

    assert all(torch.equal(value, adapters(1)[name]) for name, value in adapters(1).items())
    assert any(not torch.equal(value, adapters(2)[name]) for name, value in adapters(1).items())


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.3)])
def test_the_same_seed_gives_the_same_weights(lora):
    def trained():
        model = tiny.model("olmo")
        model = model if lora is None else models.add_lora(model, lora, seed=1)
        fine_tune(model, tiny.tokens(*[(20, 4)] * 12), recipe(seed=5), "t")
        return weights(model)

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bfloat16_is_arithmetic_only_and_weights_stay_float32():
    examples = tiny.tokens(*[(20, 4)] * 4) * 6
    model, exact = tiny.model("olmo", scale=1), tiny.model("olmo", scale=1)
    reduced = fine_tune(model, examples, recipe(dtype="bfloat16"), "t")
    full = fine_tune(exact, examples, recipe(), "t")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert reduced.last_loss < reduced.first_loss
    assert reduced.last_loss == pytest.approx(full.last_loss, rel=0.05)
    assert reduced.last_loss != full.last_loss


def test_examples_without_a_scored_token_are_left_out():
    empty = Tokens([3, 4, 5], 3)
    examples = tiny.tokens(*[(20, 4)] * 8)
    model, other = tiny.model("olmo"), tiny.model("olmo")
    assert fine_tune(model, [empty, *examples, empty], recipe(), "t").steps == 2
    fine_tune(other, examples, recipe(), "t")
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(model).items())


def test_a_task_without_anything_to_learn_is_named():
    with pytest.raises(LetheError, match="sums: no training example"):
        fine_tune(tiny.model("olmo"), [Tokens([3, 4], 2)], recipe(), "sums")


def test_a_diverged_run_is_stopped_with_its_step_and_what_to_do():
    model = tiny.model("olmo")
    model.get_output_embeddings().weight.data[3, 0] = float("nan")
    with pytest.raises(LetheError, match=r"sums: loss nan at step 0; lower recipe\.lr"):
        fine_tune(model, tiny.tokens((9, 1)), recipe(), "sums")


RAGGED = [(20, 4), (9, 8), (30, 2), (12, 1), (25, 20), (8, 3), (31, 30), (14, 6)]


@pytest.mark.parametrize("average", ["token", "example"])
def test_small_passes_add_up_to_the_step_of_the_whole_batch(average):
    whole, parts = tiny.model("olmo"), tiny.model("olmo")
    examples = tiny.tokens(*RAGGED)
    first = fine_tune(whole, examples, recipe(average=average), "t")
    second = fine_tune(parts, examples, recipe(average=average, micro_batch=1), "t")
    assert second.last_loss == pytest.approx(first.last_loss, abs=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_recomputed_activations_change_nothing(architecture):
    plain, spared = tiny.model(architecture), tiny.model(architecture)
    fine_tune(plain, tiny.tokens(*RAGGED), recipe(), "t")
    fine_tune(spared, tiny.tokens(*RAGGED), recipe(gradient_checkpointing=True), "t")
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(spared)[name], value, rtol=0, atol=1e-6)


def test_frozen_layers_stay_and_the_others_move():
    model = tiny.model("llama")
    before = weights(model)
    fine_tune(model, tiny.tokens(*RAGGED), recipe(frozen=[r"layers\.0\.", "embed"]), "t")
    moved = {name for name, value in weights(model).items() if not value.equal(before[name])}
    assert moved
    assert not [name for name in moved if "layers.0." in name or "embed" in name]


@pytest.mark.parametrize(
    ("frozen", "said"), [(["nothing_like_it"], "matches no parameter"), ([""], "no parameter to")]
)
def test_a_pattern_that_freezes_nothing_or_all_is_refused(frozen, said):
    with pytest.raises(LetheError, match=said):
        fine_tune(tiny.model("llama"), tiny.tokens(*RAGGED), recipe(frozen=frozen), "t")


def test_eight_bit_adamw_without_a_gpu_is_adamw_and_says_so():
    model, other = tiny.model("llama"), tiny.model("llama")
    found = fine_tune(model, tiny.tokens(*RAGGED), recipe(optimizer="paged_adamw_8bit"), "t")
    assert found.optimizer == "adamw"
    fine_tune(other, tiny.tokens(*RAGGED), recipe(), "t")
    assert all(value.equal(weights(other)[name]) for name, value in weights(model).items())


def trainer_losses(model, examples, batch: int, folder) -> list[float]:
    """The loss curve of transformers' Trainer on the same batches."""
    import transformers

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def padded(chosen):
        whole = collate(chosen)
        attended = torch.zeros_like(whole.ids)
        for row, example in enumerate(chosen):
            attended[row, : len(example.ids)] = 1
        labels = whole.ids.masked_fill(~whole.mask, -100)
        return {"input_ids": whole.ids, "attention_mask": attended, "labels": labels}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        optim="adamw_torch",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    made = InOrder(model=model, args=arguments, train_dataset=examples, data_collator=padded)
    made.train()
    return [line["loss"] for line in made.state.log_history if "loss" in line]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_the_loss_curve_is_that_of_transformers_trainer(architecture, tmp_path, monkeypatch):
    examples = tiny.tokens(*RAGGED) * 6
    losses = []
    take = TrainingLoop.take

    def spy(self, *arguments):
        losses.append(take(self, *arguments))
        return losses[-1]

    monkeypatch.setattr(TrainingLoop, "take", spy)
    settings = recipe(warmup_steps=0, decay="constant")
    fine_tune(tiny.model(architecture, scale=1), examples, settings, "t")
    theirs = trainer_losses(tiny.model(architecture, scale=1), examples, 4, tmp_path)
    assert losses == pytest.approx(theirs, abs=1e-3)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), MemoryError()])
@pytest.mark.parametrize("changes", [{}, {"batch": 8, "micro_batch": 4}])
def test_out_of_memory_takes_smaller_passes_to_the_same_weights(
    monkeypatch, caplog, error, changes
):
    """Two examples fit; the first step finds that out."""
    batches, whole, halved = tiny.tokens(*RAGGED, *RAGGED), tiny.model("olmo"), tiny.model("olmo")
    wanted = fine_tune(whole, batches, recipe(**changes | {"micro_batch": 2}), "t")
    sizes, inside = [], Objective.loss

    def small(self, model, part, device):
        sizes.append(len(part.examples))
        if len(part.examples) > 2:
            raise error
        return inside(self, model, part, device)

    monkeypatch.setattr(Objective, "loss", small)
    found = fine_tune(halved, batches, recipe(**changes), "t")
    assert sizes == [4] + [2] * 8
    assert "t: out of memory; 2 examples per pass now" in caplog.messages
    assert found.last_loss == wanted.last_loss
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(halved)[name], value, rtol=0, atol=0)


def test_an_example_that_alone_is_out_of_memory_is_named(monkeypatch):
    def small(*_):
        raise torch.OutOfMemoryError("CUDA")

    monkeypatch.setattr(Objective, "loss", small)
    with pytest.raises(LetheError, match=r"t: one example of up to \d+ tokens does not fit"):
        fine_tune(tiny.model("olmo"), tiny.tokens(*RAGGED), recipe(steps=2), "t")


def test_a_parameter_that_no_loss_reaches_does_not_stop_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("LETHE_CHECKPOINT_MINUTES", "0")

    def made():
        model = tiny.model("llama")
        model.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
        return model

    examples = tiny.tokens(*[(12, 4)] * 16)
    plain = made()
    fine_tune(plain, examples, recipe(), "plain")
    fine_tune(made(), examples, recipe(), "first", Checkpoint(tmp_path))
    # Three of four steps are on disk: the last is taken again.
    again = made()
    fine_tune(again, examples, recipe(), "again", Checkpoint(tmp_path))
    found, wanted = weights(again), weights(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
