"""KL(base || model) at the prompts of the batches that somebody else's trainer reads.

The workflow's own term (`prompt_kl` of a recipe), for batches of any collator: padded on either
side, packed, and with several turns. The trainer's own forward pass is used, so that only the base
model needs a pass of its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lethe.engine.batches import Batch, head_inputs, model_of
from lethe.engine.divergence import LogitTargets, StateTargets, weighted_divergence
from lethe.engine.teacher import LiveTeacher, as_base
from lethe.errors import LetheError
from lethe.integrations.chat_rows import NO_LOSS

# Inputs of a trainer's batch that the base model does not need.
_NOT_FOR_THE_BASE = {
    "labels",
    "shift_labels",
    "num_items_in_batch",
    "use_cache",
    "fused_lm_head",
    "output_router_logits",
    "return_dict",
    "logits_to_keep",
}


def count_labels(inputs: Mapping[str, Any]) -> int:
    """Number of tokens of a trainer's batch that carry loss.

    Raises
    ------
    LetheError
        If the batch has no labels.
    """
    _check_has(
        inputs,
        "labels",
        "so the tokens that carry loss cannot be counted; train on batches with labels, or leave "
        "out dose='token'",
    )
    # The first token of a row is predicted from nothing.
    return int((inputs["labels"][:, 1:] != NO_LOSS).sum())


def _check_has(inputs: Mapping[str, Any], name: str, remedy: str) -> None:
    """Raises LetheError, with what follows and what to do, if a batch lacks a tensor."""
    if not torch.is_tensor(inputs.get(name)):
        there = ", ".join(sorted(inputs)) or "nothing"
        raise LetheError(
            f"Rehearsal: the trainer's batches have no {name} (they have {there}), {remedy}"
        )


def prompt_mask(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Positions (B, T - 1) of a trainer's batch whose logits predict a token of a prompt.

    A token is part of a prompt if it carries no loss (label -100) and a later token of its row
    does. Padding and the first tokens of packed documents are left out. For a batch of one prompt
    and one answer per row, these are the positions of `lethe.engine.objectives.prompt_positions`.

    Raises
    ------
    LetheError
        If the batch has no token ids or no labels.
    """
    for name in ("input_ids", "labels"):
        _check_has(
            inputs,
            name,
            "so the prompts are unknown; leave out prompt_kl, or train on batches with labels that "
            f"are {NO_LOSS} at the prompts",
        )
    carries_loss = inputs["labels"] != NO_LOSS
    later = carries_loss.flip(1).int().cummax(1).values.flip(1).bool()
    mask = (later & ~carries_loss)[:, 1:]
    attention = inputs.get("attention_mask")
    if torch.is_tensor(attention) and attention.shape == carries_loss.shape:
        real = attention.bool()
        mask = mask & real[:, 1:] & real[:, :-1]
    places = inputs.get("position_ids")
    if torch.is_tensor(places) and places.shape == carries_loss.shape:
        # A document that begins here was not predicted from the one before it.
        mask = mask & (places[:, 1:] > places[:, :-1])
    return mask


def documents(inputs: Mapping[str, Any]) -> torch.Tensor:
    """Number (B, T - 1) of the document that each predicted token belongs to, from 0."""
    ids = inputs["input_ids"]
    begins = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
    begins[1:, 0] = True
    places = inputs.get("position_ids")
    if torch.is_tensor(places) and places.shape == ids.shape:
        begins = begins | (places[:, 1:] <= places[:, :-1])
    return begins.flatten().cumsum(0).view(begins.shape)


def sample_positions(
    mask: torch.Tensor, document: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws at most `count` of the prompt positions of each document.

    Parameters
    ----------
    mask, document
        Prompt positions, and numbers of the documents (B, T - 1).

    Returns
    -------
    The positions (B, T - 1), and the weight (S,) of each: the document's number of prompt
    positions per drawn one. The weighted sum is right on average.
    """
    candidates = mask.flatten().nonzero()[:, 0]
    order = torch.randperm(len(candidates), generator=generator).to(candidates.device)
    shuffled = candidates[order]
    owners = document.flatten()[shuffled]
    by_owner = torch.argsort(owners, stable=True)
    owners = owners[by_owner]
    _, inverse, sizes = torch.unique_consecutive(owners, return_inverse=True, return_counts=True)
    rank = torch.arange(len(owners), device=owners.device) - (sizes.cumsum(0) - sizes)[inverse]
    selected = rank < count
    places = shuffled[by_owner][selected]
    weights = torch.zeros(mask.numel(), device=mask.device)
    weights[places] = (sizes / sizes.clamp(max=count))[inverse][selected].float()
    positions = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    positions[places] = True
    return positions.view(mask.shape), weights[positions]


def backbone_of(model: Any) -> Any:
    """The part of a model that comes before its output layer."""
    return model_of(model).base_model


@torch.no_grad()
def feeds_its_head(model: Any, batch: Batch) -> bool:
    """True if the output layer reads the last states of the backbone, to the bit."""
    if backbone_of(model) is model_of(model):
        return False
    everywhere = torch.ones_like(batch.ids[:, 1:], dtype=torch.bool)
    with as_base(model):
        states, _ = head_inputs(model, batch.ids, everywhere)
        last = _last_states(model, {"input_ids": batch.ids})
    return last is not None and torch.equal(last[:, :-1][everywhere], states)


def _last_states(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    output = backbone_of(model)(**inputs, use_cache=False, return_dict=True)
    return getattr(output, "last_hidden_state", None)


@contextmanager
def caught_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collects the last states (B, T, hidden) of the backbone at every forward pass."""
    caught: list[torch.Tensor] = []

    def catch(_module: Any, _inputs: Any, output: Any) -> None:
        caught.append(output.last_hidden_state if hasattr(output, "keys") else output[0])

    hook = backbone_of(model).register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


class PromptDivergence:
    """KL(base || model) at chosen positions of a trainer's batch.

    Parameters
    ----------
    teacher
        The base model.
    reads_last_states
        Whether the trained model's logits are its output layer's on the last states of its
        backbone. Otherwise, the trained model takes a second forward pass.
    """

    def __init__(self, teacher: LiveTeacher, reads_last_states: bool):
        self.teacher = teacher
        self.reads_last_states = reads_last_states

    def loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        states: torch.Tensor | None,
        positions: torch.Tensor,
        scales: torch.Tensor,
    ) -> torch.Tensor:
        """Sum over the positions of scale x KL(base || model), in nats.

        Parameters
        ----------
        states
            Last states (B, T, hidden) of the trained model on this batch; None: unknown.
        positions
            Positions (B, T - 1) whose logits predict the token after them.
        scales
            Factor (S,) of each position.
        """
        read = _as_far_as(inputs, positions)
        width = read["input_ids"].shape[1] - 1
        narrowed = positions[:, :width]
        head = model_of(model).get_output_embeddings()
        if self.reads_last_states and states is not None:
            base = self.teacher.model
            with torch.no_grad(), as_base(base):
                base_states = _last_states(base, read)[:, :-1][narrowed]
            base_head = model_of(base).get_output_embeddings()
            targets = StateTargets(base_states, base_head.weight, base_head.bias)
            trained = states[:, :-1][positions]
            return weighted_divergence(trained, head, targets, scales)[0]
        with torch.no_grad(), as_base(self.teacher.model):
            base_logits = _logits(self.teacher.model, read, narrowed)
        logits = _logits(model, read, narrowed)
        return (LogitTargets(base_logits).divergence(logits) * scales).sum()


def _as_far_as(inputs: Mapping[str, Any], positions: torch.Tensor) -> dict[str, Any]:
    """The batch up to the last position, because later tokens cannot reach earlier ones."""
    read = {name: value for name, value in inputs.items() if name not in _NOT_FOR_THE_BASE}
    shape = read["input_ids"].shape
    tensors = [value for value in read.values() if torch.is_tensor(value)]
    if len(tensors) < len(read) or any(tensor.shape != shape for tensor in tensors):
        # Lengths of packed documents stand beside the tokens.
        return read
    columns = positions.any(0).nonzero()
    # The token that a position predicts is read as well, as the other functions expect.
    end = int(columns[-1]) + 2 if len(columns) else 2
    return {name: value[:, :end] for name, value in read.items()}


def _logits(model: Any, inputs: Mapping[str, Any], positions: torch.Tensor) -> torch.Tensor:
    """The model's own logits (S, V) at the positions, with all that follows its output layer."""
    output = model_of(model)(**inputs, use_cache=False, return_dict=True)
    return output.logits[:, :-1][positions]
