"""Per-example loss: the measurement that forgetting is the difference of."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens, lengths, scored
from lethe.engine import distributed
from lethe.engine.batches import (
    Batch,
    collate,
    example_means,
    has_plain_head,
    model_of,
    scored_losses,
)
from lethe.engine.progress import progress
from lethe.errors import LetheError

# Tokens whose logits are held at once: 50 MB with a vocabulary of 50,000 in float32.
HEAD_TOKENS = 256
# Of a GPU's memory, when batches are as large as fits: what comes between needs room as well.
FULL = 0.75


@dataclass(frozen=True)
class Scores:
    """`losses` (N,) in nats per scored token, NaN for an example without one; `tokens` (N,).

    `by_token` holds, where asked for, each example's losses token by token. `tokens_per_batch` is
    the budget that memory allowed in the end.
    """

    losses: np.ndarray
    tokens: np.ndarray
    seconds: float
    tokens_per_batch: int = 0
    by_token: list[np.ndarray] | None = None

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens over wall-clock seconds."""
        return float(self.tokens.sum() / max(self.seconds, 1e-9))


def score(
    model: Any,
    examples: Sequence[Tokens],
    tokens_per_batch: int,
    title: str = "scoring",
    *,
    by_token: bool = False,
    known: np.ndarray | None = None,
    after_batch: Callable[[np.ndarray], None] | None = None,
) -> Scores:
    """Mean loss of each example under the model (protocol: paper, section 3).

    Batches depend on the examples' lengths and `tokens_per_batch` only, so that a base model and
    its fine-tunes are measured with the same arithmetic: without training, differences are
    exactly 0. A batch that does not fit into memory is scored in halves, and so are those after.

    Parameters
    ----------
    by_token
        Keep the losses of single tokens as well; in one process only.
    known
        Losses (N,) that an interrupted run left, NaN where there is none; not measured again.
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
    losses = np.full(len(examples), np.nan, dtype=np.float32) if known is None else known.copy()
    scorer = _Scorer(model, examples, losses, title, [] if by_token else None)
    waiting = list(_by_length(examples, tokens_per_batch))[::-1]
    bar = progress(range(len(waiting)), title, "batch")
    with torch.inference_mode():
        while waiting:
            turn, mine = distributed.in_turns(waiting)
            done = mine is None or not np.isnan(losses[mine]).any() or scorer.measured(mine)
            mine = losses[:0] if mine is None else losses[mine]
            found = distributed.gathered((done, mine))[: len(turn)]
            for rows, (_, values) in zip(turn, found, strict=True):
                losses[rows] = values
            failed = [rows for rows, (done, _) in zip(turn, found, strict=True) if not done]
            bar.update(len(turn) - len(failed))
            if failed:
                waiting += failed[:0:-1]
                waiting += scorer.halves(failed[0], waiting)
                continue
            if after_batch is not None:
                after_batch(losses)
    bar.close()
    model.train(was_training)
    counts = scored(examples).astype(np.int32)
    seconds = time.perf_counter() - began
    tokens = scorer.tokens()
    return Scores(losses, counts, seconds, scorer.budget or tokens_per_batch, tokens)


class _Scorer:
    """Fills in the losses of batches, in as many tokens at a time as memory allows."""

    def __init__(self, model, examples, losses, title, by_token):
        self.model, self.examples, self.losses, self.title = model, examples, losses, title
        self.by_token, self.plain, self.budget = by_token, None, None
        self.device = next(model.parameters()).device

    def measured(self, rows: np.ndarray) -> bool:
        """Scores a batch; False if it did not fit into memory."""
        try:
            batch = collate([self.examples[row] for row in rows], self.device)
            losses, places = scored_losses(self.model, batch, self._is_plain(batch), HEAD_TOKENS)
            self.losses[rows] = example_means(losses, places, len(rows)).cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return False
        if self.by_token is not None:
            losses, places = losses.cpu().numpy(), places.cpu().numpy()
            self.by_token += [(row, losses[places == i]) for i, row in enumerate(rows)]
        return True

    def _is_plain(self, batch: Batch) -> bool:
        if self.plain is None:
            self.plain = has_plain_head(self.model, batch)
            if not self.plain:
                kind = type(model_of(self.model)).__name__
                print(
                    f"{self.title}: {kind} changes what its output layer gives; its own logits "
                    "are used, a batch at a time",
                    file=sys.stderr,
                )
        return self.plain

    def halves(self, rows: np.ndarray, waiting: list[np.ndarray]) -> list[np.ndarray]:
        """The batch in two, to be scored next; later batches are cut to the new size as well."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            tokens = len(self.examples[rows[0]].ids)
            raise LetheError(
                f"{self.title}: one example of {tokens} tokens does not fit into memory; lower "
                "scoring.max_tokens or use a smaller dtype"
            )
        half = -(-len(rows) // 2)
        self.budget = half * max(len(self.examples[row].ids) for row in rows)
        print(f"{self.title}: out of memory; {self.budget} tokens a batch now", file=sys.stderr)
        left = np.concatenate([rows, *waiting[::-1]])
        waiting.clear()
        batches = cut_by_length(left, lengths(self.examples), self.budget)
        return list(batches)[::-1]

    def tokens(self) -> list[np.ndarray] | None:
        """Losses token by token in the examples' order, if they were kept."""
        if self.by_token is None:
            return None
        found = dict(self.by_token)
        empty = np.empty(0, dtype=np.float32)
        return [found.get(row, empty) for row in range(len(self.examples))]


def fitting_budget(model: Any, examples: Sequence[Tokens], careful: int) -> int:
    """Tokens of a batch that the model's GPU has memory for; on the CPU the careful number.

    The longest examples are scored in batches of twice as many tokens each time, until three
    quarters of the memory were in use or it ran out.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return careful
    order = np.argsort(-lengths(examples), kind="stable")

    def share_used(budget: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        rows = next(cut_by_length(order, lengths(examples), budget))
        scorer = _Scorer(model, examples, np.zeros(len(examples), np.float32), "trying", None)
        with torch.inference_mode():
            if not scorer.measured(rows):
                torch.cuda.empty_cache()
                return 1.0
        total = torch.cuda.get_device_properties(device).total_memory
        return torch.cuda.max_memory_reserved(device) / total

    return grown(share_used, careful, int(lengths(examples).sum()))


def grown(share_used: Callable[[int], float], start: int, most: int) -> int:
    """The largest of `start`, twice as much, ... up to `most` that uses at most FULL of memory.

    `share_used` tries a budget and says what share of memory it took, 1 if it did not fit.
    """
    budget = start
    while 2 * budget <= most and share_used(2 * budget) <= FULL:
        budget *= 2
    return budget


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out; PyTorch's CPU allocator raises a RuntimeError."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text


def _by_length(examples: Sequence[Tokens], tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Groups examples of like length, at most `tokens_per_batch` padded tokens a group."""
    sizes, rows = lengths(examples), np.flatnonzero(scored(examples))
    order = rows[np.argsort(-sizes[rows], kind="stable")]
    return cut_by_length(order, sizes, tokens_per_batch)


def cut_by_length(
    order: np.ndarray, lengths: np.ndarray, tokens_per_batch: int
) -> Iterator[np.ndarray]:
    """Groups rows, longest first, into batches of at most so many padded tokens."""
    while len(order):
        size = max(1, tokens_per_batch // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]
