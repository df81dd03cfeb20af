"""Batches of tokens, and the loss of a causal language model on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lethe.data.tokens import Tokens


@dataclass(frozen=True)
class Batch:
    """Right-padded `ids` (B, T) and `mask` (B, T), true where a token carries loss."""

    ids: torch.Tensor
    mask: torch.Tensor


def collate(examples: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Pads examples on the right with token 0.

    With causal attention, padding on the right cannot reach the tokens before it, so that no
    attention mask is needed; the tests compare with transformers' own masked loss.
    """
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, example.start : len(example.ids)] = True
    return Batch(ids.to(device), mask.to(device))


def token_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats of every token that carries loss.

    Logits at position t predict token t + 1. They are the model's own, with whatever scaling or
    soft cap its architecture puts behind the output layer.

    Returns
    -------
    losses (S,) in float32, and the batch row (S,) each belongs to.
    """
    wanted = batch.mask[:, 1:]
    logits = _logits(_unwrapped(model), batch.ids, wanted).float()
    losses = F.cross_entropy(logits, batch.ids[:, 1:][wanted], reduction="none")
    return losses, wanted.nonzero()[:, 0]


def _logits(model: Any, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Logits (S, vocabulary) at the wanted (B, T - 1) positions.

    The output layer is given these positions only, which for short answers is most of the work
    saved, by a hook: the model's own forward pass runs, so that no architecture is second-guessed.
    """
    narrowed = []

    def narrow(_module: Any, inputs: tuple) -> tuple:
        narrowed.append(True)
        return (inputs[0][:, :-1][wanted][None], *inputs[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        logits = model(input_ids=ids, use_cache=False)[0]
    finally:
        if hook is not None:
            hook.remove()
    # Some architectures multiply by the embeddings without calling the layer.
    return logits[0] if narrowed else logits[:, :-1][wanted]


def _unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, with its adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def example_means(losses: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Mean loss (count,) of each example, NaN where it has no scored token."""
    sums = torch.zeros(count, dtype=losses.dtype, device=losses.device)
    sizes = torch.zeros_like(sums)
    sums = sums.index_add(0, rows, losses)
    sizes = sizes.index_add(0, rows, torch.ones_like(losses))
    return sums / sizes
