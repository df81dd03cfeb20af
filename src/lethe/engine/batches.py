"""Batches of tokens, and the loss of a causal language model on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lethe.data.tokens import Tokens

# Words and tokens of one product of states and output layer: 8 MB of logits in float32.
SLICE = 2048
SLICED_TOKENS = 1024


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
    logits = _logits(model_of(model), batch.ids, wanted).float()
    losses = F.cross_entropy(logits, batch.ids[:, 1:][wanted], reduction="none")
    return losses, wanted.nonzero()[:, 0]


def scored_losses(
    model: Any, batch: Batch, plain: bool, head_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_losses`, without gradients and with the output layer in chunks of tokens.

    Logits of `head_tokens` tokens are held at a time, not of the whole batch. `plain` says that
    the model's logits are its output layer's (`has_plain_head`); of another model they are held.
    """
    if not plain:
        return token_losses(model, batch)
    wanted = batch.mask[:, 1:]
    states, _ = _states(model, batch.ids, wanted)
    head, targets = model_of(model).get_output_embeddings(), batch.ids[:, 1:][wanted]
    losses_of = _sliced_losses if _pays_in_slices(head) else _whole_losses
    # Slices are narrow, so that as much memory holds more tokens.
    size = SLICED_TOKENS if losses_of is _sliced_losses else head_tokens
    parts = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([losses_of(head, s, t) for s, t in parts]), wanted.nonzero()[:, 0]


def _whole_losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(states).float(), targets, reduction="none")


def _pays_in_slices(head: Any) -> bool:
    """Whether it is a plain matrix of a large vocabulary, on the CPU."""
    # A wrapped or hooked layer is more than its weights.
    hooked = type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks
    return not hooked and head.out_features > 4 * SLICE and head.weight.device.type == "cpu"


def _sliced_losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (S,) from SLICE words' logits at a time: they never leave the cache.

    log sum exp over the vocabulary is log sum exp over its slices' log sum exp.
    """
    normalisers, own = [], torch.zeros(len(targets), device=targets.device)
    for start in range(0, head.out_features, SLICE):
        end = min(start + SLICE, head.out_features)
        bias = None if head.bias is None else head.bias[start:end]
        logits = F.linear(states, head.weight[start:end], bias).float()
        here = ((targets >= start) & (targets < end)).nonzero()[:, 0]
        own[here] = logits[here, targets[here] - start]
        largest = logits.amax(1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(1)
        normalisers.append(total.log_().add_(largest[:, 0]))
    return torch.stack(normalisers).logsumexp(0) - own


def has_plain_head(model: Any, batch: Batch) -> bool:
    """True if the model's logits are what its output layer gives, to the bit.

    Some architectures scale or cap logits, or have no output layer that is called; nothing is
    known of an architecture beforehand, it is tried on the batch's first two tokens.
    """
    if model_of(model).get_output_embeddings() is None:
        return False
    ids = batch.ids[:1, :2]
    states, logits = _states(model, ids, torch.ones_like(ids[:, 1:], dtype=torch.bool))
    if states is None:
        return False
    again = model_of(model).get_output_embeddings()(states[None])
    return torch.equal(again, logits)


def _states(
    model: Any, ids: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """What the output layer is given (S, hidden) at the wanted positions, and its first logits.

    The layer itself sees the first of them only.
    """
    model, caught = model_of(model), []

    def catch(_module: Any, inputs: tuple) -> tuple:
        caught.append(inputs[0][:, :-1][wanted])
        return (caught[0][:1][None], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        logits = model(input_ids=ids, use_cache=False)[0]
    finally:
        hook.remove()
    return (caught[0] if caught else None), logits


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


def model_of(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, with its adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def example_means(losses: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """Mean loss (count,) of each example, NaN where it has no scored token."""
    sums = torch.zeros(count, dtype=losses.dtype, device=losses.device)
    sizes = torch.zeros_like(sums)
    sums = sums.index_add(0, rows, losses)
    sizes = sizes.index_add(0, rows, torch.ones_like(losses))
    return sums / sizes
