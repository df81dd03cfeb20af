"""How a model's predictions of single tokens differ from those of the base model."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens
from lethe.engine.batches import (
    Batch,
    announce_prompts,
    collate,
    example_means,
    head_inputs,
    model_of,
    position_logits,
)
from lethe.engine.divergence import (
    HELD_LOGITS,
    LEAST_TOKENS,
    LogitTargets,
    StateTargets,
)
from lethe.engine.teacher import LiveTeacher, ModelComparison

# Means over the scored tokens of an example. `top1` is the most probable token: `changed` if it is
# another one than the base model's, `right` if it is the token of the text.
MEASURES = (
    "kl",
    "top1_changed",
    "top1_right_before",
    "top1_right_after",
    "top1_lost",
    "top1_gained",
    "entropy_before",
    "entropy_after",
)


def mean_prediction_changes(
    model: Any,
    teacher: LiveTeacher,
    examples: Sequence[Tokens],
    tokens_per_batch: int,
    title: str = "prediction changes",
) -> np.ndarray:
    """Means (N, len(MEASURES)) over the scored tokens of each example.

    KL(base || model) and the entropies of both distributions are in nats. The others are shares
    of the tokens. The measurement costs a forward pass of each of the two models.

    Parameters
    ----------
    tokens_per_batch
        Padded tokens per batch; batches depend on this and the examples' lengths only.

    Returns
    -------
    Array in float32, NaN for an example without a scored token.

    Raises
    ------
    LetheError
        If a single example does not fit into memory.
    """
    means = np.full((len(examples), len(MEASURES)), np.nan, dtype=np.float32)
    _TokenComparison(model, teacher, examples).fill(means, tokens_per_batch, title)
    return means


class _TokenComparison(ModelComparison):
    """Compares the distributions of two models on one batch of examples at a time."""

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Means (n, len(MEASURES)) of the examples at these rows."""
        examples = [self.examples[row] for row in rows]
        batch = collate(examples, self.device)
        positions = batch.mask[:, 1:]
        targets = self.teacher.targets(examples, batch, positions)
        words = batch.ids[:, 1:][positions]
        announce_prompts(self.model, examples)
        measured = []
        first = 0
        for base, logits in self._logits(batch, positions, targets):
            measured.append(_measure(base, logits, words[first : first + len(base)]))
            first += len(base)
        values = torch.cat(measured, dim=1)
        owners = positions.nonzero()[:, 0]
        means = [example_means(line, owners, len(rows)) for line in values]
        return torch.stack(means, dim=1).cpu().numpy()

    def _logits(
        self, batch: Batch, positions: torch.Tensor, targets: StateTargets | LogitTargets
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits (s, V) of the base model and of the model, for some tokens at a time."""
        if isinstance(targets, LogitTargets):
            logits = position_logits(model_of(self.model), batch.ids, positions)
            yield targets.logits.float(), logits.float()
            return
        states, _ = head_inputs(self.model, batch.ids, positions)
        head = model_of(self.model).get_output_embeddings()
        # Half as many tokens, because both models' logits are held at once.
        size = max(LEAST_TOKENS, HELD_LOGITS // (2 * len(targets.weight)))
        for first in range(0, len(states), size):
            part = targets.part(first, first + size)
            yield part.logits(), head(states[first : first + size]).float()


def _measure(base: torch.Tensor, logits: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """The measures (len(MEASURES), s) of s tokens, from the logits (s, V) of both models."""
    top_before = base.argmax(1)
    top_after = logits.argmax(1)
    right_before = top_before == words
    right_after = top_after == words
    values = {
        "kl": LogitTargets(base).divergence(logits),
        "top1_changed": top_before != top_after,
        "top1_right_before": right_before,
        "top1_right_after": right_after,
        "top1_lost": right_before & ~right_after,
        "top1_gained": right_after & ~right_before,
        "entropy_before": _entropy(base),
        "entropy_after": _entropy(logits),
    }
    return torch.stack([values[name].float() for name in MEASURES])


def _entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy (s,) in nats of the distributions with these logits (s, V)."""
    log = logits.log_softmax(1)
    return -(log.exp() * log).sum(1)
