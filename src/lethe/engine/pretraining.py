"""Pretrains a small model from scratch on the upstream corpus, with checkpoints that it resumes."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from lethe.config.model_settings import Pretraining
from lethe.data.examples import Example
from lethe.data.tokens import Tokens
from lethe.engine.batches import collate, token_losses
from lethe.engine.checkpoints import Checkpoint, fingerprint, optimizer_tensors, restore_optimizer
from lethe.engine.progress import progress
from lethe.errors import LetheError


def corpus(
    folder: Path, documents: Sequence[Example], settings: Pretraining
) -> tuple[Any, list[list[int]]]:
    """The tokenizer saved in `folder`, and the documents as sequences of one context each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [whole_text(document) for document in documents]
    ids = tokenizer(texts)["input_ids"] if texts else []
    return tokenizer, pack(ids, settings.context, tokenizer.eos_token_id, settings.seed)


def whole_text(document: Example) -> str:
    """A document as it is pretrained on: a pair reads prompt, line break, answer."""
    if document.text is not None:
        return document.text
    return f"{document.prompt.rstrip()}\n{document.answer.strip()}"


def pack(documents: Sequence[list[int]], context: int, end: int, seed: int) -> list[list[int]]:
    """Joins shuffled documents, an end token after each, and cuts them into full contexts.

    Raises
    ------
    LetheError
        If the corpus does not fill one context.
    """
    order = list(range(len(documents)))
    random.Random(f"{seed}/pack").shuffle(order)
    joined = [token for i in order for token in (*documents[i], end)]
    sequences = [joined[i : i + context] for i in range(0, len(joined) - context + 1, context)]
    if not sequences:
        raise LetheError(f"the corpus has {len(joined)} tokens, fewer than one context {context}")
    return sequences


def pretrain(
    model: Any, sequences: list[list[int]], settings: Pretraining, checkpoint: Path, title: str
) -> list[float]:
    """Trains with AdamW, linear warm-up and cosine decay; returns the losses of its own steps.

    What is in the folder `checkpoint` is gone on from if it was made from the same model,
    sequences and settings: batches depend on the step only, so that an interrupted run ends with
    the same weights as an uninterrupted one.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    shapes = [(name, list(p.shape)) for name, p in model.named_parameters()]
    made_from = fingerprint(shapes, sequences, settings.model_dump(mode="json"))
    model.train()
    losses = []
    with Checkpoint(checkpoint, made_from) as unfinished:
        start = _resume(model, optimizer, unfinished)
        remaining = range(start, settings.steps)
        steps = progress(remaining, title, "step", initial=start, total=settings.steps)
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * _factor(step, settings)
            losses.append(_step(model, optimizer, _batch(sequences, step, settings)))
            steps.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            done = step + 1
            planned = done % settings.checkpoint_steps == 0
            if done < settings.steps and (unfinished.due() or planned):
                unfinished.save("pretraining", optimizer_tensors(model, optimizer), {"step": done})
                unfinished.leave_if_asked(f"{title}, step {done} of {settings.steps}")
    model.eval()
    return losses


def _resume(model: Any, optimizer: torch.optim.Optimizer, unfinished: Checkpoint) -> int:
    """Restores weights and optimiser state; 0 where there is no checkpoint that fits."""
    found = unfinished.load("pretraining")
    if found is None:
        return 0
    tensors, facts = found
    restore_optimizer(model, optimizer, tensors, facts["step"])
    return facts["step"]


def _step(model: Any, optimizer: torch.optim.Optimizer, batch: list[Tokens]) -> float:
    losses, _ = token_losses(model, collate(batch, next(model.parameters()).device))
    loss = losses.mean()
    if not torch.isfinite(loss):
        raise LetheError(f"pretraining: the loss became {loss.item()}; lower pretraining.lr")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _batch(sequences: list[list[int]], step: int, settings: Pretraining) -> list[Tokens]:
    """The step's sequences: each epoch is a new permutation drawn from the seed."""
    per_epoch = max(1, len(sequences) // settings.batch)
    epoch, position = divmod(step, per_epoch)
    order = list(range(len(sequences)))
    random.Random(f"{settings.seed}/epoch/{epoch}").shuffle(order)
    rows = order[position * settings.batch : (position + 1) * settings.batch]
    return [Tokens(sequences[row], 1) for row in rows]


def _factor(step: int, settings: Pretraining) -> float:
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    left = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * left))
