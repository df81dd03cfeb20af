"""Batches of tokens, and the loss of a causal language model on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lethe.data.tokens import Tokens

# Vocabulary entries and tokens of one product of states and output layer: 8 MB of float32 logits.
SLICE = 2048
SLICED_TOKENS = 1024


@dataclass(frozen=True)
class Batch:
    """Right-padded `ids` (B, T) and `mask` (B, T), true where a token carries loss.

    `examples` are those of the rows.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    examples: Sequence[Tokens] = ()


def collate(examples: Sequence[Tokens], device: torch.device | str = "cpu") -> Batch:
    """Pads examples on the right with token 0.

    With causal attention, padding on the right cannot reach the tokens before it. Therefore no
    attention mask is needed; the tests compare with transformers' own masked loss.
    """
    length = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask = torch.zeros(len(examples), length, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        mask[row, : len(example.ids)] = torch.from_numpy(example.loss_mask)
    return Batch(ids.to(device), mask.to(device), examples)


def announce_prompts(model: Any, examples: Sequence[Tokens]) -> None:
    """Prepares a model that treats examples by their prompts for a pass over these examples.

    All other models do without it (`lethe.engine.memory`).
    """
    if hasattr(model, "announce_prompts"):
        model.announce_prompts(examples)


def token_losses(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats of every token that carries loss.

    Logits at position t predict token t + 1. They are the model's own, with any scaling or soft cap
    that its architecture applies after the output layer.

    Returns
    -------
    losses (S,) in float32, and the batch row (S,) that each belongs to.
    """
    announce_prompts(model, batch.examples)
    positions = batch.mask[:, 1:]
    logits = position_logits(model_of(model), batch.ids, positions).float()
    losses = F.cross_entropy(logits, batch.ids[:, 1:][positions], reduction="none")
    return losses, positions.nonzero()[:, 0]


def scored_losses(
    model: Any, batch: Batch, plain: bool, head_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `token_losses`, without gradients and with the output layer in chunks of tokens.

    Parameters
    ----------
    plain
        True if the model's logits are those of its output layer (`has_plain_head`). Then the logits
        of `head_tokens` tokens are held at a time; otherwise those of the whole batch.
    """
    if not plain:
        return token_losses(model, batch)
    announce_prompts(model, batch.examples)
    positions = batch.mask[:, 1:]
    states, _ = head_inputs(model, batch.ids, positions)
    head = model_of(model).get_output_embeddings()
    targets = batch.ids[:, 1:][positions]
    chunk_losses = _chunk_losses
    size = head_tokens
    if _pays_in_slices(head):
        # Slices of the vocabulary are narrow, so the same memory holds more tokens.
        chunk_losses = _sliced_losses
        size = SLICED_TOKENS
    losses = []
    for states_part, targets_part in zip(states.split(size), targets.split(size), strict=True):
        losses.append(chunk_losses(head, states_part, targets_part))
    return torch.cat(losses), positions.nonzero()[:, 0]


def _chunk_losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (S,) from the logits of the whole vocabulary."""
    return F.cross_entropy(head(states).float(), targets, reduction="none")


def _pays_in_slices(head: Any) -> bool:
    """True for a plain matrix of a large vocabulary on the CPU."""
    # A wrapped or hooked layer does more than multiply by its weights.
    hooked = type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks
    return not hooked and head.out_features > 4 * SLICE and head.weight.device.type == "cpu"


def _sliced_losses(head: Any, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (S,) from the logits of SLICE vocabulary entries at a time.

    Such logits never leave the processor's cache. log sum exp over the vocabulary is log sum exp
    over the log sum exp of its slices.
    """
    normalisers = []
    target_logits = torch.zeros(len(targets), device=targets.device)
    for start in range(0, head.out_features, SLICE):
        end = min(start + SLICE, head.out_features)
        bias = None if head.bias is None else head.bias[start:end]
        logits = F.linear(states, head.weight[start:end], bias).float()
        inside = ((targets >= start) & (targets < end)).nonzero()[:, 0]
        target_logits[inside] = logits[inside, targets[inside] - start]
        largest = logits.amax(1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(1)
        normalisers.append(total.log_().add_(largest[:, 0]))
    return torch.stack(normalisers).logsumexp(0) - target_logits


def has_plain_head(model: Any, batch: Batch) -> bool:
    """True if the model's logits equal the values of its output layer to the bit.

    Some architectures scale or cap logits, or have no output layer that is called. No list of
    architectures is needed: the batch's first two tokens are tried.
    """
    if model_of(model).get_output_embeddings() is None:
        return False
    ids = batch.ids[:1, :2]
    announce_prompts(model, [Tokens(ids[0].tolist(), 1)])
    states, logits = head_inputs(model, ids, torch.ones_like(ids[:, 1:], dtype=torch.bool))
    if states is None:
        return False
    return torch.equal(model_of(model).get_output_embeddings()(states[None]), logits)


def head_inputs(
    model: Any, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Inputs (S, hidden) of the output layer at the positions (B, T - 1), and its first logits.

    The layer itself gets only the first of them.
    """
    model = model_of(model)
    caught = []

    def catch(_module: Any, inputs: tuple) -> tuple:
        caught.append(inputs[0][:, :-1][positions])
        return (caught[0][:1][None], *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(catch)
    try:
        logits = forward_logits(model, ids)
    finally:
        hook.remove()
    return (caught[0] if caught else None), logits


def position_logits(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Logits (S, vocabulary) at the positions (B, T - 1).

    The output layer gets these positions only, which for short answers saves most of its work. A
    hook does this, so that the model's own forward pass runs, whatever its architecture.
    """
    narrowed = []

    def narrow(_module: Any, inputs: tuple) -> tuple:
        narrowed.append(True)
        return (inputs[0][:, :-1][positions][None], *inputs[1:])

    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        logits = forward_logits(model, ids)
    finally:
        if hook is not None:
            hook.remove()
    # Some architectures multiply by the embeddings without calling the layer.
    return logits[0] if narrowed else logits[:, :-1][positions]


def forward_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits (B, T, vocabulary) for token ids (B, T).

    They are read by name, because the first output of a mixture of experts may be its balancing
    loss.
    """
    return model(input_ids=ids, use_cache=False, return_dict=True).logits


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
