"""The untouched base model while another is trained: the teacher of the KL objectives."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch

from lethe.data.tokens import Tokens, lengths, scored
from lethe.engine import distributed
from lethe.engine.batch_runner import BatchRunner, cut_by_length
from lethe.engine.batches import (
    Batch,
    announce_prompts,
    collate,
    example_means,
    has_plain_head,
    head_inputs,
    model_of,
    position_logits,
)
from lethe.engine.divergence import (
    HELD_LOGITS,
    LEAST_TOKENS,
    LogitTargets,
    StateTargets,
    StoredTargets,
    Targets,
    weighted_divergence,
)
from lethe.errors import LetheError

# Padded tokens per batch of distributions that are stored before a training.
TOKENS_PER_BATCH = 1024


class Teacher(Protocol):
    """Gives the base model's distributions."""

    def targets(self, examples: Sequence[Tokens], batch: Batch, positions: torch.Tensor) -> Targets:
        """Distributions at the positions (B, T - 1) of a batch that these examples make."""


class LiveTeacher:
    """A model that is asked at every pass: a frozen copy, or one whose adapters are off meanwhile.

    Parameters
    ----------
    model
        The base model, or a PEFT model, which without its adapters is the base model to the bit if
        only adapters are trained.
    plain
        Whether the model's logits are its output layer's (`has_sliceable_head`).
    """

    def __init__(self, model: Any, plain: bool):
        self.model, self.plain = model, plain

    @torch.no_grad()
    def targets(
        self, examples: Sequence[Tokens], batch: Batch, positions: torch.Tensor
    ) -> StateTargets | LogitTargets:
        """Distributions at the positions (B, T - 1) of a batch that these examples make."""
        with as_base(self.model):
            if not self.plain:
                return LogitTargets(position_logits(model_of(self.model), batch.ids, positions))
            states, _ = head_inputs(self.model, batch.ids, positions)
            head = model_of(self.model).get_output_embeddings()
            return StateTargets(states, head.weight, head.bias)


class StoredTeacher:
    """Distributions computed once per example, before the training, at the tokens that carry loss.

    Parameters
    ----------
    base
        The model before its first step.
    examples
        All examples that will be asked for; equal ones are computed once.
    top_k
        Words per position that are stored, the others as one (`StoredTargets`); None: all words.
    """

    def __init__(self, base: LiveTeacher, examples: Sequence[Tokens], top_k: int | None):
        device = next(base.model.parameters()).device
        self._stored: dict[tuple, StoredTargets] = {}
        distinct = list({_key(example): example for example in examples}.values())
        sizes = lengths(distinct)
        longest_first = np.argsort(-sizes, kind="stable")
        # Processes that share a model take the same batches, because each takes part in all.
        for rows in cut_by_length(longest_first, sizes, TOKENS_PER_BATCH):
            part = [distinct[row] for row in rows]
            batch = collate(part, device)
            stored = _store(base.targets(part, batch, batch.mask[:, 1:]), top_k)
            first = 0
            for example in part:
                self._stored[_key(example)] = stored.part(first, first + example.scored)
                first += example.scored

    def targets(
        self, examples: Sequence[Tokens], batch: Batch, positions: torch.Tensor
    ) -> StoredTargets:
        """Distributions at the positions (B, T - 1) of a batch that these examples make.

        Raises
        ------
        LetheError
            If the positions are not the tokens of the examples that carry loss.
        """
        if not torch.equal(positions, batch.mask[:, 1:]):
            raise LetheError(
                "stored distributions of the base model are those of tokens that carry loss; "
                "set replay.teacher to live for others"
            )
        parts = [self._stored[_key(example)] for example in examples]
        return StoredTargets.joined(parts, batch.ids.device)


def frozen_copy(model: Any, plain: bool, dtype: torch.dtype | None = None) -> LiveTeacher:
    """A teacher that stays as `model` is now: without a copy if the model only trains adapters.

    A copy is sharded as the model is, so call this before the model itself is sharded.

    Parameters
    ----------
    plain
        Whether the model's logits are its output layer's (`has_sliceable_head`).
    dtype
        Type of the copy's weights; None: as the model's.
    """
    if hasattr(model, "disable_adapter"):
        return LiveTeacher(model, plain)
    return frozen_teacher(copy.deepcopy(model), plain, dtype)


def frozen_teacher(base: Any, plain: bool, dtype: torch.dtype | None = None) -> LiveTeacher:
    """Makes a base model, which nothing else uses, a teacher by freezing it in place.

    The parameters are those of `frozen_copy`.
    """
    base.requires_grad_(False).eval()
    if dtype is not None:
        # Buffers stay: rotary frequencies in bfloat16 would make another model of it.
        for parameter in base.parameters():
            parameter.data = parameter.data.to(dtype)
    if distributed.size() > 1:
        distributed.shard(base)
    return LiveTeacher(base, plain)


@contextmanager
def as_base(model: Any) -> Iterator[None]:
    """Without dropout and, if the model has adapters, without them."""
    was_training = model.training
    trained = [parameter.requires_grad for parameter in model.parameters()]
    adapters_off = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    model.eval()
    try:
        with adapters_off:
            yield
    finally:
        # PEFT makes all adapters trainable, those that the recipe froze as well.
        for parameter, flag in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)
        model.train(was_training)


@torch.no_grad()
def has_sliceable_head(model: Any, example: Tokens) -> bool:
    """True if the model's logits are what the weights of a plain output layer give.

    Tried on the example's first tokens, so call this before the model is sharded.
    """
    head = model_of(model).get_output_embeddings()
    if type(head) is not torch.nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return False
    with as_base(model):
        return has_plain_head(model, collate([example], next(model.parameters()).device))


def mean_divergences(
    model: Any,
    teacher: LiveTeacher,
    examples: Sequence[Tokens],
    tokens_per_batch: int,
    title: str = "divergence",
) -> np.ndarray:
    """Mean KL(base || model) of each example over its tokens that carry loss, in nats.

    It costs a forward pass of each of the two models.

    Parameters
    ----------
    tokens_per_batch
        Padded tokens per batch; batches depend on this and the examples' lengths only.

    Returns
    -------
    Array (N,) in float32, NaN for an example without a token that carries loss.

    Raises
    ------
    LetheError
        If a single example does not fit into memory.
    """
    means = np.full(len(examples), np.nan, dtype=np.float32)
    ModelComparison(model, teacher, examples).fill(means, tokens_per_batch, title)
    return means


class ModelComparison:
    """Compares a model with its teacher on one batch of examples at a time."""

    def __init__(self, model: Any, teacher: LiveTeacher, examples: Sequence[Tokens]):
        self.model = model
        self.teacher = teacher
        self.examples = examples
        self.lengths = lengths(examples)
        self.device = next(model.parameters()).device

    def fill(self, results: np.ndarray, tokens_per_batch: int, title: str) -> None:
        """Compares the models on every example with scored tokens, in their row of `results`."""
        runner = BatchRunner(
            self,
            results=results,
            finished=np.zeros(len(self.examples), dtype=bool),
            rows=np.flatnonzero(scored(self.examples)),
            tokens_per_batch=tokens_per_batch,
            title=title,
        )
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            runner.run()
        self.model.train(was_training)

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Mean divergences of the examples at these rows."""
        examples = [self.examples[row] for row in rows]
        batch = collate(examples, self.device)
        positions = batch.mask[:, 1:]
        targets = self.teacher.targets(examples, batch, positions)
        announce_prompts(self.model, examples)
        values = self._divergences(batch, positions, targets)
        return example_means(values, positions.nonzero()[:, 0], len(rows)).cpu().numpy()

    def too_large(self, row: int) -> str:
        """The error of an example that does not fit into memory by itself."""
        return (
            f"one example of {self.lengths[row]} tokens does not fit into memory beside the base "
            "model; lower scoring.max_tokens"
        )

    def _divergences(
        self, batch: Batch, positions: torch.Tensor, targets: StateTargets | LogitTargets
    ) -> torch.Tensor:
        """KL(base || model) at the positions."""
        if isinstance(targets, LogitTargets):
            logits = position_logits(model_of(self.model), batch.ids, positions)
            return targets.divergence(logits)
        states, _ = head_inputs(self.model, batch.ids, positions)
        head = model_of(self.model).get_output_embeddings()
        scales = torch.ones(len(states), device=states.device)
        return weighted_divergence(states, head, targets, scales)[1]


def _key(example: Tokens) -> tuple:
    return (example.start, example.gaps, *example.ids)


def _store(targets: StateTargets | LogitTargets, top_k: int | None) -> StoredTargets:
    """The targets' most probable words, a chunk of tokens at a time."""
    if isinstance(targets, LogitTargets):
        return StoredTargets.of(targets.logits, top_k)
    size = max(LEAST_TOKENS, HELD_LOGITS // len(targets.weight))
    parts = []
    for first in range(0, len(targets), size):
        states = targets.states[first : first + size]
        logits = torch.nn.functional.linear(states, targets.weight, targets.bias)
        parts.append(StoredTargets.of(logits, top_k))
    return StoredTargets.joined(parts, targets.states.device)
