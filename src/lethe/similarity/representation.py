"""The representation of an example by a model: the mean of its last hidden states."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lethe.data.tokens import Tokens, lengths
from lethe.engine.batches import collate
from lethe.engine.progress import progress
from lethe.similarity.embeddings import batches_by_length


def represent(model: Any, examples: Sequence[Tokens], tokens_per_batch: int) -> np.ndarray:
    """Averages the last hidden states over each example's tokens; returns vectors (n, D).

    The last hidden state is the input of the output layer, after the final norm. Padding stands on
    the right, where causal attention cannot see it, and is left out of the mean. An example without
    tokens has NaN.

    Raises
    ------
    ValueError
        If no example has a token.
    """
    body = model.base_model
    device = next(model.parameters()).device
    token_counts = lengths(examples)
    vectors: np.ndarray | None = None
    batches = list(batches_by_length(token_counts.tolist(), tokens_per_batch))
    with torch.inference_mode():
        for rows in progress(batches, "representation", "batch"):
            ids = collate([examples[row] for row in rows], device).ids
            count = torch.as_tensor(token_counts[rows], device=device)
            inside = torch.arange(ids.shape[1], device=device) < count[:, None]
            hidden = body(input_ids=ids, use_cache=False)[0].float()
            means = (hidden * inside[..., None]).sum(dim=1) / count[:, None]
            if vectors is None:
                vectors = np.full((len(examples), means.shape[1]), np.nan, dtype=np.float32)
            vectors[rows] = means.cpu().numpy()
    if vectors is None:
        raise ValueError(f"none of the {len(examples)} examples has a token")
    return vectors
