"""Pretrains a small model from scratch on the upstream corpus, with checkpoints that it resumes."""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from lethe.batches import collate, token_losses
from lethe.config.models import Pretraining
from lethe.data.examples import Example
from lethe.data.tokens import Tokens
from lethe.errors import LetheError
from lethe.files import whole
from lethe.progress import progress


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

    A checkpoint at `checkpoint` (safetensors, no pickle) is resumed from if it was made from the
    same model, sequences and settings: batches depend on the step only, so that an interrupted
    run ends with the same weights as an uninterrupted one.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    made_from = _fingerprint(model, sequences, settings)
    start = _resume(model, optimizer, checkpoint, made_from)
    model.train()
    losses = []
    remaining = range(start, settings.steps)
    steps = progress(remaining, title, "step", initial=start, total=settings.steps)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _factor(step, settings)
        losses.append(_step(model, optimizer, _batch(sequences, step, settings)))
        steps.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        done = step + 1
        if done % settings.checkpoint_steps == 0 and done < settings.steps:
            _save(model, optimizer, done, checkpoint, made_from)
    model.eval()
    return losses


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


def _fingerprint(model: Any, sequences: list[list[int]], settings: Pretraining) -> str:
    shapes = [(name, list(p.shape)) for name, p in model.named_parameters()]
    made_from = [shapes, sequences, settings.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()


def _save(
    model: Any, optimizer: torch.optim.Optimizer, step: int, path: Path, made_from: str
) -> None:
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"exp_avg/{name}"] = state["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with whole(path) as part:
        save_file(tensors, part, metadata={"step": str(step), "made_from": made_from})


def _resume(model: Any, optimizer: torch.optim.Optimizer, path: Path, made_from: str) -> int:
    """Restores weights and optimiser state; 0 where there is no checkpoint that fits."""
    try:
        opened = safe_open(path, framework="pt")
    except (OSError, SafetensorError):
        # None, or a disk that was full: the run starts over.
        return 0
    with opened as tensors:
        if (tensors.metadata() or {}).get("made_from") != made_from:
            return 0
        step = int(tensors.metadata()["step"])
        for name, parameter in model.named_parameters():
            parameter.data.copy_(tensors.get_tensor(f"weight/{name}"))
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors.get_tensor(f"exp_avg/{name}").to(parameter.device),
                "exp_avg_sq": tensors.get_tensor(f"exp_avg_sq/{name}").to(parameter.device),
            }
    return step
