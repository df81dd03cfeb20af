"""Pretrains a small model from scratch on the upstream corpus; an interrupted run resumes."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lethe.config.model_settings import Pretraining, Recipe
from lethe.data.examples import Example
from lethe.data.tokens import Tokens
from lethe.engine.checkpoints import Checkpoint, fingerprint
from lethe.engine.objectives import Objective, Step
from lethe.engine.pretrained import Pretrained
from lethe.engine.schedule import Schedule
from lethe.engine.training_loop import LoopSettings, TrainingLoop
from lethe.errors import LetheError


def corpus(
    folder: Path, documents: Sequence[Example], settings: Pretraining
) -> tuple[Any, list[list[int]]]:
    """The tokenizer saved in `folder`, and the documents as sequences of one context each."""
    tokenizer = Pretrained(name=f"tokenizer of {folder}", path=str(folder)).load_tokenizer()
    texts = [whole_text(document) for document in documents]
    ids = tokenizer(texts)["input_ids"] if texts else []
    return tokenizer, pack(ids, settings.context, tokenizer.eos_token_id, settings.seed)


def whole_text(document: Example) -> str:
    """A document's text for pretraining: a pair reads prompt, line break, answer."""
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
    joined: list[int] = []
    for number in order:
        joined += documents[number]
        joined.append(end)
    sequences = [joined[i : i + context] for i in range(0, len(joined) - context + 1, context)]
    if not sequences:
        raise LetheError(
            f"the corpus has {len(joined)} tokens, fewer than one context of {context}; raise "
            "upstream.corpus_words, or lower pretraining.context of the model"
        )
    return sequences


def pretrain(
    model: Any, sequences: list[list[int]], settings: Pretraining, folder: Path, title: str
) -> list[float]:
    """Trains with AdamW, linear warm-up and cosine decay.

    Batches depend on the step only, so that an interrupted run ends with the same weights as an
    uninterrupted one.

    Parameters
    ----------
    folder
        Folder of the checkpoint. The run resumes from it if it was made from the same model,
        sequences and settings.

    Returns
    -------
    The losses of the steps that this run took, in nats per token.

    Raises
    ------
    LetheError
        If the loss becomes NaN or infinite, or a sequence does not fit into memory.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01
    )
    loop = TrainingLoop(
        model,
        settings=LoopSettings(
            section="pretraining",
            lr=settings.lr,
            max_grad_norm=1.0,
            seed=settings.seed,
            micro_batch=None,
            checkpoint_steps=settings.checkpoint_steps,
            smaller="lower pretraining.context",
        ),
        optimizer=optimizer,
        optimizer_name="adamw",
        schedule=Schedule.of_pretraining(settings),
        # Means over tokens in float32, as a recipe has them by default.
        objective=Objective(Recipe()),
    )
    shapes = [(name, list(p.shape)) for name, p in model.named_parameters()]
    made_from = fingerprint(shapes, sequences, settings.model_dump(mode="json"))
    with Checkpoint(folder, made_from) as checkpoint:
        losses = loop.run(
            lambda number: Step(batch_of_step(sequences, number, settings), []),
            settings.steps,
            title,
            checkpoint,
        )
    return losses[loop.resumed_steps :]


def batch_of_step(sequences: list[list[int]], step: int, settings: Pretraining) -> list[Tokens]:
    """The step's sequences: each epoch is a new permutation drawn from the seed."""
    per_epoch = max(1, len(sequences) // settings.batch)
    epoch, position = divmod(step, per_epoch)
    order = list(range(len(sequences)))
    random.Random(f"{settings.seed}/epoch/{epoch}").shuffle(order)
    rows = order[position * settings.batch : (position + 1) * settings.batch]
    return [Tokens(sequences[row], 1) for row in rows]
