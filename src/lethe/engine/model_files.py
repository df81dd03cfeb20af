"""The files that define a model: which they are, whether they are complete, and their hashes.

A card (model.json) holds the SHA-256 of each file of a model folder. Every load compares the folder
with the card, so that rows of one Z never come from two models. Large files are hashed once: their
hash is cached with their size and times, and is only computed again when one of these changes.
"""

import json
import logging
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lethe.data.records import refuse_lfs_pointer
from lethe.errors import LetheError
from lethe.files import cached_sha256

_log = logging.getLogger("lethe.engine")
ADAPTER = "adapter_config.json"
# Patterns of the files that may hold a chat template.
_TEMPLATE_PATTERNS = (
    "tokenizer_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
# Patterns of the files that transformers reads for a causal language model and its tokenizer.
_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    *_TEMPLATE_PATTERNS,
    "*.py",
    ADAPTER,
)


def defining_files(folder: Path | str) -> list[Path]:
    """The files of a folder that define a model, sorted by name."""
    return _matching(folder, _PATTERNS)


def template_files(folder: Path | str) -> list[Path]:
    """The files of a folder that may hold a model's chat template, sorted by name."""
    return _matching(folder, _TEMPLATE_PATTERNS)


def _matching(folder: Path | str, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that match one of the patterns, sorted by name."""
    files = {path for pattern in patterns for path in Path(folder).glob(pattern)}
    return sorted(path for path in files if path.is_file())


def hashes(folder: Path | str) -> dict[str, str]:
    """SHA-256 of each file that defines a model, by its name within the folder."""
    return {str(path.relative_to(folder)): cached_sha256(path) for path in defining_files(folder)}


def check_complete(folder: Path | str, name: str | None = None) -> None:
    """Makes sure that a folder holds a whole model.

    Parameters
    ----------
    name
        Begins the errors about the folder as a whole; by default `model` and the folder.

    Raises
    ------
    LetheError
        If the folder holds an adapter, no safetensors weights, a Git LFS pointer, or a file that is
        empty or cut off; or if a shard is missing.
    """
    folder = Path(folder)
    name = name or f"model {folder}"
    _refuse_adapter(folder, name)
    files = defining_files(folder)
    if not any(path.suffix == ".safetensors" for path in files):
        raise LetheError(
            f"{name}: the folder holds no .safetensors file, and pickled weights are never "
            "loaded; save the model with transformers' save_pretrained, and let models.<name>.path "
            "name that folder"
        )
    refuse_pointers(folder)
    for path in files:
        if path.suffix == ".safetensors":
            _refuse_truncated(path)
    for path in files:
        if path.name.endswith(".safetensors.index.json"):
            _refuse_missing_shards(path)


def check_unchanged(card: Mapping[str, Any]) -> None:
    """Makes sure that a model folder is the one that its card describes.

    Cards of earlier versions hold hashes of the weights only; then only these are compared, and a
    sentence in the log says so. Models of the hub are identified by their commit instead.

    Raises
    ------
    LetheError
        Naming the model and the files that differ.
    """
    folder = Path(card["path"])
    expected = {**card.get("weights", {}), **card.get("files", {})}
    if not expected:
        return
    if not folder.is_dir():
        raise LetheError(
            f"model {card['path']}: the folder that its card describes is missing; put it back, or "
            "name another model in the experiment"
        )
    if "files" not in card:
        _log.info(
            "model %s: its card was written by an earlier version of lethe and holds hashes of the "
            "weights only; its tokenizer and settings are not compared",
            card["path"],
        )
    problems = []
    present = {str(path.relative_to(folder)): path for path in defining_files(folder)}
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            problems.append(f"{name} is missing")
        elif name in expected:
            if cached_sha256(present[name]) != expected[name]:
                problems.append(f"{name} has other content")
        elif "files" in card or name.endswith(".safetensors"):
            problems.append(f"{name} is new")
    if problems:
        raise LetheError(
            f"model {card['path']}: its weights, settings or tokenizer are no longer those of "
            f"model.json ({'; '.join(problems)}), so that its rows would come from two models. "
            "Restore these files, or give the changed model a name of its own under models"
        )


def _refuse_adapter(folder: Path, name: str) -> None:
    if not (folder / ADAPTER).exists():
        return
    try:
        base = json.loads((folder / ADAPTER).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    raise LetheError(f"{name}: {adapter_message(base)}")


def adapter_message(base: str | None) -> str:
    """The error of an adapter that was given as a model."""
    name = base or "a base model that adapter_config.json does not name"
    return (
        f"it holds an adapter (such as LoRA) of {name}, and no model of its own. Merge the two "
        "first: load the adapter with peft's AutoPeftModelForCausalLM.from_pretrained, call "
        "merge_and_unload() and save_pretrained() into a new folder, and save the tokenizer there"
    )


def refuse_pointers(folder: Path | str) -> None:
    """Makes sure that no file that defines a model is a Git LFS pointer to the real file.

    Raises
    ------
    LetheError
        Naming the first such file.
    """
    for path in defining_files(folder):
        refuse_lfs_pointer(path)


def _refuse_truncated(path: Path) -> None:
    """Compares the size of a safetensors file with the size that its header describes."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            (header_size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(header_size, size)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in tensors]
        expected = 8 + header_size + max(ends, default=0)
    except (
        struct.error,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
    ):
        raise LetheError(
            f"{path}: not a readable safetensors file (the header of its {size:,} bytes is damaged "
            "or cut off); fetch or save the file again"
        )
    if size != expected:
        raise LetheError(
            f"{path}: the file has {size:,} bytes, but its header describes {expected:,}; it was "
            "cut off or damaged. Fetch or save it again"
        )


def _refuse_missing_shards(index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LetheError(f"{index}: not a readable index of shards; fetch or save it again")
    if missing := sorted(name for name in shards if not (index.parent / name).is_file()):
        raise LetheError(
            f"{index}: {len(missing)} shard(s) of the model are missing, the first is "
            f"{missing[0]}; fetch or save the model again"
        )
