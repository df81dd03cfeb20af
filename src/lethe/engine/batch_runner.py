"""Runs work on examples in batches of similar length: scoring and generation share this."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from lethe.engine import distributed
from lethe.engine.progress import progress
from lethe.errors import LetheError

_log = logging.getLogger("lethe.engine")


class BatchWork(Protocol):
    """Work that a model does on one batch of examples at a time.

    `lengths` (N,) are the tokens that each example takes up in a batch, before padding.
    """

    lengths: np.ndarray
    device: torch.device

    def run(self, rows: np.ndarray) -> Any:
        """Results of the examples at these rows, in their order; may run out of memory."""
        ...

    def too_large(self, row: int) -> str:
        """A sentence for the user: this one example does not fit into memory, and the remedy."""
        ...


class BatchRunner:
    """Fills in the results of examples batch by batch, the longest first.

    Batches depend on `work.lengths` and the budget only, never on the model, so that a base model
    and its fine-tunes are measured with the same arithmetic. Processes that share a job take turns.
    A batch that does not fit into memory is run in halves, and later batches are cut to that size
    too.

    Parameters
    ----------
    results
        Array (N,) that is filled in; it may hold the results of an interrupted run.
    finished
        Boolean (N,), true where `results` holds a result already.
    rows
        Indices of the examples to work on.
    tokens_per_batch
        Padded tokens per batch.
    title
        Names the work in progress lines and errors.

    Attributes
    ----------
    budget
        Padded tokens per batch that memory allowed in the end.
    """

    def __init__(
        self,
        work: BatchWork,
        *,
        results: np.ndarray,
        finished: np.ndarray,
        rows: np.ndarray,
        tokens_per_batch: int,
        title: str,
    ):
        self.work = work
        self.results = results
        self.finished = finished
        self.budget = tokens_per_batch
        self.title = title
        longest_first = rows[np.argsort(-work.lengths[rows], kind="stable")]
        # A stack: the next batch is the last item.
        self._waiting = self._cut(longest_first)

    def run(self, after_batch: Callable[[np.ndarray], None] | None = None) -> None:
        """Works through all batches.

        Parameters
        ----------
        after_batch
            Called with the results so far after every turn in which all batches fit.

        Raises
        ------
        LetheError
            If a single example does not fit into memory.
        """
        bar = progress(range(len(self._waiting)), self.title, "batch")
        while self._waiting:
            turn, rows = distributed.take_turn(self._waiting)
            outcomes = distributed.all_gather(self._outcome(rows))[: len(turn)]
            failed = []
            for batch, values in zip(turn, outcomes, strict=True):
                if values is None:
                    failed.append(batch)
                    continue
                self.results[batch] = values
                self.finished[batch] = True
                bar.update()
            if failed:
                self._waiting += failed[:0:-1]
                self._halve(failed[0])
            elif after_batch is not None:
                after_batch(self.results)
        bar.close()

    def _outcome(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Results of a batch, empty if there is none; None if it does not fit into memory."""
        if rows is None:
            return self.results[:0]
        if self.finished[rows].all():
            return self.results[rows]
        try:
            return self.work.run(rows)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            return None

    def _halve(self, rows: np.ndarray) -> None:
        """Puts a batch back in two halves; waiting batches are cut to the new size as well."""
        if self.work.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            raise LetheError(f"{self.title}: {self.work.too_large(rows[0])}")
        half = -(-len(rows) // 2)
        self.budget = half * int(self.work.lengths[rows].max())
        _log.warning("%s: out of memory; %d tokens per batch now", self.title, self.budget)
        self._waiting = self._cut(np.concatenate([rows, *self._waiting[::-1]]))

    def _cut(self, longest_first: np.ndarray) -> list[np.ndarray]:
        batches = list(cut_by_length(longest_first, self.work.lengths, self.budget))
        return batches[::-1]


def cut_by_length(
    longest_first: np.ndarray, lengths: np.ndarray, tokens_per_batch: int
) -> Iterator[np.ndarray]:
    """Cuts rows, the longest first, into batches of at most so many padded tokens."""
    while len(longest_first):
        size = max(1, tokens_per_batch // int(lengths[longest_first[0]]))
        yield longest_first[:size]
        longest_first = longest_first[size:]


def out_of_memory(error: Exception) -> bool:
    """True if the error reports a lack of memory; PyTorch's CPU allocator raises RuntimeError."""
    message = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in message
