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

    Logits at position t predict token t + 1. The output layer runs on the positions before
    scored tokens only, which for short answers is most of the work saved.

    Returns
    -------
    losses (S,) in float32, and the batch row (S,) each belongs to.
    """
    hidden = _hidden_states(model, batch.ids)
    wanted = batch.mask[:, 1:]
    logits = _head(model)(hidden[:, :-1][wanted]).float()
    losses = F.cross_entropy(logits, batch.ids[:, 1:][wanted], reduction="none")
    return losses, wanted.nonzero()[:, 0]


def _hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    body = _unwrapped(model).base_model
    return body(input_ids=ids, use_cache=False)[0]


def _head(model: Any) -> Any:
    return _unwrapped(model).get_output_embeddings()


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
