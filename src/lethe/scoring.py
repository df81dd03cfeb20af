"""Per-example loss: the measurement that forgetting is the difference of."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lethe.batches import collate, example_means, token_losses
from lethe.data.tokens import Tokens
from lethe.progress import progress


@dataclass(frozen=True)
class Scores:
    """`losses` (N,) in nats per scored token, NaN for an example without one; `tokens` (N,)."""

    losses: np.ndarray
    tokens: np.ndarray
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens over wall-clock seconds."""
        return float(self.tokens.sum() / max(self.seconds, 1e-9))


def score(
    model: Any, examples: Sequence[Tokens], tokens_per_batch: int, title: str = "scoring"
) -> Scores:
    """Mean loss of each example under the model (protocol: paper, section 3).

    Batches depend on the examples' lengths and `tokens_per_batch` only, so that a base model and
    its fine-tunes are measured with the same arithmetic: without training, differences are
    exactly 0.
    """
    began = time.perf_counter()
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses = np.full(len(examples), np.nan, dtype=np.float32)
    batches = list(_by_length(examples, tokens_per_batch))
    with torch.inference_mode():
        for rows in progress(batches, title, "batch"):
            batch = collate([examples[row] for row in rows], device)
            means = example_means(*token_losses(model, batch), len(rows))
            losses[rows] = means.cpu().numpy()
    model.train(was_training)
    counts = np.array([example.scored for example in examples], dtype=np.int32)
    return Scores(losses, counts, time.perf_counter() - began)


def _by_length(examples: Sequence[Tokens], tokens_per_batch: int) -> Iterator[list[int]]:
    """Groups examples of like length, at most `tokens_per_batch` padded tokens a group."""
    lengths = [len(example.ids) for example in examples]
    order = sorted(
        (row for row, example in enumerate(examples) if example.scored),
        key=lambda row: (-lengths[row], row),
    )
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        yield order[:size]
        order = order[size:]
