"""Trainers of transformers on tiny models, and the gradients of their steps."""

import torch
import transformers

from helpers import tiny
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.objectives import make_objective

# Prompts of one to twelve tokens, of different lengths, and answers behind them.
TASK = tiny.tokens(*[(14 + i % 5, 2 + i % 9) for i in range(24)], seed=3)
BATCH = 4


def padded(examples):
    """Batches of examples whose padding has no label, without an attention mask."""
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        end = len(example.ids)
        ids[row, :end] = torch.tensor(example.ids)
        labels[row, example.start : end] = ids[row, example.start : end]
    return {"input_ids": ids, "labels": labels}


class KeepGradients(transformers.TrainerCallback):
    """Stores the gradients of every optimizer step, by parameter."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_kwargs):
        gradients = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.detach().clone()
        self.steps.append(gradients)


def make_trainer(model, folder, tokenizer, data=TASK, **changes):
    arguments = {
        "learning_rate": 1e-2,
        "max_steps": 4,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 1,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": BATCH,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **arguments | changes),
        train_dataset=data,
        data_collator=padded,
        processing_class=tokenizer,
    )


def move(model):
    """Changes the trained weights, so that the model diverges from its base."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn_like(parameter)


def make_model(lora=None, architecture="llama"):
    model = tiny.model(architecture, scale=2)
    return model if lora is None else models.add_lora(model, lora, 0)


def batches_of(trainer, count):
    """The new examples of the first optimizer steps."""
    taken = []
    per_step = trainer.args.gradient_accumulation_steps
    loader = iter(trainer.get_train_dataloader())
    for _ in range(count):
        examples = []
        for _ in range(per_step):
            batch = next(loader)
            for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
                marked = (labels != -100).nonzero()[:, 0]
                examples.append(Tokens(ids[: marked[-1] + 1].tolist(), int(marked[0])))
        taken.append(examples)
    return taken


def expected_gradients(model, base, step, recipe, term):
    """The gradients of the workflow's own objective on the same step."""
    base_objective = make_objective(base, recipe, [step], term)
    model.zero_grad(set_to_none=True)
    model.train()
    for parts in base_objective.parts(step, None):
        for part in parts:
            base_objective.loss(model, part, "cpu").backward()
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().clone()
    model.zero_grad(set_to_none=True)
    return gradients


def assert_same(gradients, expected, tolerance=1e-5):
    assert gradients.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    for name, value in gradients.items():
        torch.testing.assert_close(
            value, expected[name], rtol=0, atol=tolerance * largest, msg=name
        )
