"""Per-example loss; forgetting is the difference of two of these measurements."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens, lengths, scored
from lethe.engine.batch_runner import BatchRunner, cut_by_length, out_of_memory
from lethe.engine.batches import (
    Batch,
    collate,
    example_means,
    has_plain_head,
    model_of,
    scored_losses,
)

_log = logging.getLogger("lethe.engine")
# Tokens whose logits are held at once: 50 MB with a vocabulary of 50,000 in float32.
HEAD_TOKENS = 256
# Padded tokens per batch of a few examples that are scored token by token.
SMALL_BATCH = 1024
# Share of a GPU's memory that automatic batches may use; fragments and answers need the rest.
FULL = 0.75


@dataclass(frozen=True)
class Scores:
    """Losses of examples, with how they were measured.

    Attributes
    ----------
    losses
        Mean loss (N,) in nats per scored token, NaN for an example without a scored token.
    tokens
        Number of scored tokens (N,).
    tokens_per_batch
        Padded tokens per batch that memory allowed in the end.
    by_token
        Losses token by token of each example, if they were requested.
    """

    losses: np.ndarray
    tokens: np.ndarray
    seconds: float
    tokens_per_batch: int = 0
    by_token: list[np.ndarray] | None = None

    @property
    def all_nan(self) -> bool:
        """True if there are examples with scored tokens, and none of them has a finite loss."""
        scored_examples = self.tokens > 0
        return bool(scored_examples.any() and not np.isfinite(self.losses[scored_examples]).any())

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens per second of wall-clock time."""
        return float(self.tokens.sum() / max(self.seconds, 1e-9))


def score(
    model: Any,
    examples: Sequence[Tokens],
    tokens_per_batch: int,
    title: str = "scoring",
    *,
    by_token: bool | dict[int, np.ndarray] = False,
    partial: np.ndarray | None = None,
    after_batch: Callable[[np.ndarray], None] | None = None,
) -> Scores:
    """Mean loss of each example under the model (protocol: paper, section 3).

    Batches depend on the examples' lengths and `tokens_per_batch` only, so that a base model and
    its fine-tunes are measured with the same arithmetic: without training, differences are
    exactly 0. A batch that does not fit into memory is scored in halves, and so are later ones.

    Parameters
    ----------
    by_token
        Also keep the losses of single tokens; in one process only. A dictionary receives them by
        row, and may hold those of the rows that an interrupted run measured.
    partial
        Losses (N,) of an interrupted run, NaN where there is no loss yet; only those are measured.
    after_batch
        Called with the losses (N,) so far after every batch.

    Raises
    ------
    LetheError
        If a single example does not fit into memory.
    """
    began = time.perf_counter()
    was_training = model.training
    model.eval()
    counts = scored(examples)
    losses = np.full(len(examples), np.nan, dtype=np.float32)
    if partial is not None:
        losses[:] = partial
    scorer = _Scorer(model, examples, title, by_token)
    runner = BatchRunner(
        scorer,
        results=losses,
        finished=~np.isnan(losses),
        rows=np.flatnonzero(counts),
        tokens_per_batch=tokens_per_batch,
        title=title,
    )
    with torch.inference_mode():
        runner.run(after_batch)
    model.train(was_training)
    return Scores(
        losses=losses,
        tokens=counts.astype(np.int32),
        seconds=time.perf_counter() - began,
        tokens_per_batch=runner.budget,
        by_token=scorer.losses_by_token(),
    )


def score_tokens(
    model: Any, examples: Sequence[Tokens], tokens_per_batch: int, title: str
) -> list[np.ndarray]:
    """Losses of the scored tokens of each example, in nats and in the order of the tokens.

    Batches are small, so memory is no concern after a scoring of the same examples. The job's other
    processes do not take part.

    Parameters
    ----------
    tokens_per_batch
        Padded tokens per batch; no more than SMALL_BATCH of them are used.

    Returns
    -------
    One array (S,) in float32 per example; S is the number of its scored tokens.
    """
    by_token: dict[int, np.ndarray] = {}
    scorer = _Scorer(model, examples, title, by_token)
    counts = scored(examples)
    with_loss = np.flatnonzero(counts)
    longest_first = with_loss[np.argsort(-scorer.lengths[with_loss], kind="stable")]
    was_training = model.training
    model.eval()
    budget = min(tokens_per_batch, SMALL_BATCH)
    with torch.inference_mode():
        for rows in cut_by_length(longest_first, scorer.lengths, budget):
            scorer.run(rows)
    model.train(was_training)
    return scorer.losses_by_token() or []


class _Scorer:
    """Scores one batch of examples at a time."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Tokens],
        title: str,
        by_token: bool | dict[int, np.ndarray],
    ):
        self.model = model
        self.examples = examples
        self.title = title
        self.lengths = lengths(examples)
        self.device = next(model.parameters()).device
        self._by_token: dict[int, np.ndarray] | None = None
        if by_token is not False:
            self._by_token = {} if by_token is True else by_token
        self._plain_head: bool | None = None

    def run(self, rows: np.ndarray) -> np.ndarray:
        """Mean losses of the examples at these rows."""
        batch = collate([self.examples[row] for row in rows], self.device)
        losses, owners = scored_losses(self.model, batch, self._has_plain_head(batch), HEAD_TOKENS)
        means = example_means(losses, owners, len(rows)).cpu().numpy()
        if self._by_token is not None:
            values = losses.cpu().numpy()
            owner_rows = owners.cpu().numpy()
            for number, row in enumerate(rows):
                self._by_token[int(row)] = values[owner_rows == number]
        return means

    def too_large(self, row: int) -> str:
        """The error of an example that does not fit into memory by itself."""
        return (
            f"one example of {self.lengths[row]} tokens does not fit into memory; lower "
            "scoring.max_tokens or use a smaller dtype"
        )

    def losses_by_token(self) -> list[np.ndarray] | None:
        """Losses token by token in the order of the examples, if they were requested."""
        if self._by_token is None:
            return None
        empty = np.empty(0, dtype=np.float32)
        return [self._by_token.get(row, empty) for row in range(len(self.examples))]

    def _has_plain_head(self, batch: Batch) -> bool:
        if self._plain_head is None:
            self._plain_head = has_plain_head(self.model, batch)
            if not self._plain_head:
                _log.warning(
                    "%s: %s changes the values of its output layer; its own logits are used, one "
                    "batch at a time",
                    self.title,
                    type(model_of(self.model)).__name__,
                )
        return self._plain_head


def fitting_budget(model: Any, examples: Sequence[Tokens], careful: int) -> int:
    """Padded tokens per batch that this model's device has memory for.

    On a GPU, batches of the longest examples are tried, twice as large each time, until more than
    three quarters of the memory are in use or it runs out. On a CPU the result is `careful`.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return careful
    longest_first = np.argsort(-lengths(examples), kind="stable")

    def share_used(budget: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        batch = next(cut_by_length(longest_first, lengths(examples), budget))
        scorer = _Scorer(model, examples, "trying", by_token=False)
        with torch.inference_mode():
            try:
                scorer.run(batch)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                return 1.0
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) / total

    return largest_budget(share_used, careful, int(lengths(examples).sum()))


def largest_budget(share_used: Callable[[int], float], start: int, most: int) -> int:
    """The largest of `start`, twice as much, ... up to `most` that uses at most FULL of memory.

    Parameters
    ----------
    share_used
        Tries a budget and returns the share of memory it used, 1 if it did not fit.
    """
    budget = start
    while 2 * budget <= most and share_used(2 * budget) <= FULL:
        budget *= 2
    return budget
