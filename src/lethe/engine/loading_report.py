"""Refuses models that do not load whole, with the likely cause.

transformers initialises tensors at random that a model needs and its files lack. Every job would
draw its own, and losses would differ for no reason.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lethe.engine.batches import model_of
from lethe.engine.model_files import adapter_message
from lethe.errors import LetheError

# Prefixes that wrappers put before the names of all tensors, with the wrapper.
_PREFIXES = {
    "_orig_mod.": "torch.compile: save model._orig_mod",
    "module.": "DataParallel: save model.module",
    "_fsdp_wrapped_module.": "FSDP: save a full state dict",
    "base_model.model.": "PEFT: call merge_and_unload() before saving",
}
# Output layers of models that are no language models.
_CLASSIFIERS = ("score.", "classifier.", "qa_outputs.", "v_head.")
# Buffers that older versions of transformers saved and newer ones compute.
_OLD_BUFFERS = ("inv_freq", "masked_bias", "attn.bias", "attention.bias")
_NAMED = 4


def check_loaded(model: Any, report: Mapping[str, Iterable], path: str) -> None:
    """Makes sure that every tensor of a model came from its files.

    Parameters
    ----------
    report
        transformers' loading report (`output_loading_info`).

    Raises
    ------
    LetheError
        Naming the tensors that are missing, left over or of another shape, and the likely cause.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        base = getattr(model.config, "_name_or_path", None)
        raise LetheError(f"model {path}: {adapter_message(base)}")
    missing = sorted(report.get("missing_keys", ()))
    unexpected = sorted(
        name for name in report.get("unexpected_keys", ()) if not name.endswith(_OLD_BUFFERS)
    )
    mismatched = sorted(report.get("mismatched_keys", ()), key=str)
    problems = []
    if missing:
        problems.append(f"without {_names(missing)}")
    if mismatched:
        shapes = []
        for name, saved, needed in mismatched:
            shapes.append(f"{name} {tuple(saved)} instead of {tuple(needed)}")
        problems.append(f"with other shapes: {_names(shapes)}")
    if unexpected:
        problems.append(f"with tensors that the model does not have: {_names(unexpected)}")
    if problems:
        raise LetheError(
            f"model {path}: its files do not hold this language model as a whole, but one "
            f"{'; '.join(problems)}. {_cause(model, missing, unexpected)}"
        )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _cause(model: Any, missing: list[str], unexpected: list[str]) -> str:
    """The likely cause, with the remedy."""
    for prefix, wrapper in _PREFIXES.items():
        if any(name.startswith(prefix) for name in unexpected):
            return f"The names begin with {prefix!r}, as of a model wrapped by {wrapper}"
    if any("lora_" in name for name in unexpected):
        return "It was saved with its adapters; call merge_and_unload() before saving"
    if any(name.startswith(_CLASSIFIERS) for name in unexpected):
        return (
            "It was saved as a classifier or reward model; use the language model that it was "
            "trained from"
        )
    if missing and not unexpected and all(_of_head(name) for name in missing):
        return (
            "It was saved without its output layer, for example by AutoModel; save it with "
            "AutoModelForCausalLM"
        )
    kind = type(model).__name__
    return (
        f"config.json describes a {kind}; make sure that config.json and the weights are from the "
        "same model, and save both again with save_pretrained"
    )


def _of_head(name: str) -> bool:
    return "head" in name or "embed_out" in name


def check_vocabulary(model: Any, tokenizer: Any, path: str) -> None:
    """Makes sure that the model has an embedding for every token of its tokenizer.

    Raises
    ------
    LetheError
        With the sizes of both.
    """
    embeddings = model.get_input_embeddings().weight.shape[0]
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if tokens > embeddings:
        raise LetheError(
            f"model {path}: its tokenizer has {tokens} tokens, but the model has embeddings for "
            f"{embeddings} only. Save the tokenizer that belongs to the model, or call "
            f"model.resize_token_embeddings({tokens}), train the new embeddings and save the model"
        )


def positions_of(model: Any) -> int | None:
    """Longest sequence that a model can read at all; None if nothing limits it.

    Only positions that are embedded or tabulated limit it. Rotary positions go on beyond the length
    that a model was trained with.
    """
    model = model_of(model)
    if model.config.model_type == "mpt":
        return model.config.max_seq_len
    if model.config.model_type == "ctrl":
        return model.config.n_positions
    sizes = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding) and ("wpe" in name or "position" in name):
            # OPT reserves the first two positions, RoBERTa those up to its padding position.
            reserved = getattr(module, "offset", 0)
            if module.padding_idx is not None:
                reserved = module.padding_idx + 1
            sizes.append(module.num_embeddings - reserved)
    for name, table in model.named_buffers():
        # GPT-J and CodeGen tabulate sines and cosines of each position.
        if name.endswith("embed_positions"):
            sizes.append(table.shape[0])
    return min(sizes, default=None)


def check_length(model: Any, longest: int, setting: str) -> None:
    """Makes sure that a model has a position for every token of the longest sequence.

    Parameters
    ----------
    longest
        Tokens of the longest sequence.
    setting
        The settings that limit its length, for the error.

    Raises
    ------
    LetheError
        With the model's number of positions and the setting to lower.
    """
    positions = positions_of(model)
    if positions is not None and longest > positions:
        name = getattr(model, "name_or_path", "")
        raise LetheError(
            f"model {name}: it has {positions} positions, but the longest sequence has {longest} "
            f"tokens; set {setting} to at most {positions}"
        )


def check_finite(model: Any, path: str) -> None:
    """Makes sure that no weight is NaN or infinite.

    Raises
    ------
    LetheError
        Naming the first such tensor, and how many there are.
    """
    broken = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not torch.isfinite(parameter).all():
                broken.append(name)
    if broken:
        raise LetheError(
            f"model {path}: {len(broken)} tensor(s) hold weights that are NaN or infinite, the "
            f"first is {broken[0]}. The model was damaged before lethe read it (a training that "
            "diverged, or a conversion to float16); use an earlier checkpoint of it"
        )
