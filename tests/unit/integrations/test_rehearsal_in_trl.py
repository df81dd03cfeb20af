"""Replay inside trl's SFTTrainer."""

import copy

import pytest
import torch
from helpers import tiny
from helpers.trainers import (
    BATCH,
    TASK,
    KeepGradients,
    assert_same,
    batches_of,
    expected_gradients,
    make_model,
    move,
)

from lethe.config.model_settings import LoRA, Recipe
from lethe.engine.objectives import ReplayTerm, Step
from lethe.errors import LetheError
from lethe.integrations import Rehearsal

TRL = pytest.importorskip("trl", reason="trl is not installed; pip install trl")
DATASETS = pytest.importorskip("datasets")


def pair_data(count=24):
    lines = []
    for number, text in enumerate(tiny.sentences(count, seed=5)):
        words = text.split()
        lines.append({"prompt": " ".join(words[:5]), "completion": f" {words[5]} {number}"})
    return DATASETS.Dataset.from_list(lines)


def make_sft_trainer(model, folder, tokenizer, data=None, **changes):
    arguments = {
        "max_steps": 4,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "max_length": 48,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": BATCH,
    }
    return TRL.SFTTrainer(
        model=model,
        args=TRL.SFTConfig(output_dir=str(folder), **arguments | changes),
        train_dataset=pair_data() if data is None else data,
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, dropout=0.0)], ids=["full", "lora"])
def test_the_base_model_stays_the_base_in_trls_trainer(replay, tokenizer, tmp_path, lora):
    """trl's forward method holds the model that is trained; a copy of it must not use it."""
    model = make_model(lora)
    base = make_model(lora)
    trainer = make_sft_trainer(model, tmp_path, tokenizer)
    rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.0)
    trainer.train()
    kl = [line["replay/kl"] for line in rehearsal.history]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert min(kl[1:]) > 1e-4
    ids = torch.tensor([TASK[0].ids])
    teacher = rehearsal._terms.replay_teacher.model
    adapters = teacher.disable_adapter() if lora else torch.no_grad()
    with torch.no_grad(), adapters:
        expected = base(input_ids=ids).logits
        assert torch.equal(teacher(input_ids=ids).logits, expected)
        assert lora or not torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize(("accumulated", "dose"), [(1, "step"), (2, "step"), (2, "token")])
def test_trls_trainer_has_the_gradients_of_the_workflows_own_objective(
    replay, tokenizer, tmp_path, accumulated, dose
):
    model = make_model()
    base = copy.deepcopy(model)
    changes = {"gradient_accumulation_steps": accumulated, "max_steps": 1, "max_grad_norm": 0.0}
    trainer = make_sft_trainer(model, tmp_path / "t", tokenizer, **changes)
    keeper = KeepGradients()
    trainer.add_callback(keeper)
    rehearsal = Rehearsal.attach(trainer, replay, prompt_kl=1.5, dose=dose)
    move(model)
    moved = copy.deepcopy(base)
    for parameter, value in zip(moved.parameters(), model.parameters(), strict=True):
        parameter.data.copy_(value.data)
    other = make_sft_trainer(copy.deepcopy(base), tmp_path / "b", tokenizer, **changes)
    (new,) = batches_of(other, 1)
    replayed = rehearsal.replay.of_step(0)
    term = ReplayTerm(replayed, objective="kl", weight=4.0, dose=dose)
    recipe = Recipe(batch=BATCH * accumulated, prompt_kl=1.5)
    expected = expected_gradients(moved, base, Step(new, replayed), recipe, term)
    trainer.train()
    assert_same(keeper.steps[0], expected)


def test_packed_examples_have_the_gradients_of_examples_one_by_one(replay, tokenizer, tmp_path):
    gradients = []
    for packing in (False, True):
        model = make_model()
        trainer = make_sft_trainer(
            model,
            tmp_path / str(packing),
            tokenizer,
            # One step over all examples, so that only their layout differs.
            data=pair_data(6),
            packing=packing,
            max_steps=1,
            max_grad_norm=0.0,
            per_device_train_batch_size=6,
        )
        keeper = KeepGradients()
        trainer.add_callback(keeper)
        Rehearsal.attach(trainer, replay, prompt_kl=1.5)
        move(model)
        trainer.train()
        gradients.append(keeper.steps[0])
    assert_same(*gradients, tolerance=1e-4)


def test_every_assistant_turn_of_a_chat_is_learned_and_the_rest_is_prompt(tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}\n"
        "{% endgeneration %}{% else %}U: {{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    )
    turns = [
        {"role": "user", "content": "how many sacks"},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": "one more"},
        {"role": "assistant", "content": "stay ashore"},
    ]
    data = DATASETS.Dataset.from_list([{"messages": turns}] * 8)
    trainer = make_sft_trainer(
        make_model(), tmp_path, tokenizer, data=data, assistant_only_loss=True
    )
    rehearsal = Rehearsal.attach(trainer, prompt_kl=1.0, prompt_kl_positions=3)
    trainer.train()
    assert rehearsal.history[-1]["replay/prompt_kl"] > 1e-5


def test_prompts_without_loss_are_needed_for_their_divergence(tokenizer, tmp_path):
    data = DATASETS.Dataset.from_list([{"text": text} for text in tiny.sentences(8)])
    trainer = make_sft_trainer(make_model(), tmp_path, tokenizer, data=data)
    Rehearsal.attach(trainer, prompt_kl=1.0)
    with pytest.raises(LetheError, match="all tokens of the first step carry loss"):
        trainer.train()
