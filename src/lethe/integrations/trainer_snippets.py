"""Settings that make a trainer read the files of a mixture, with the trainer's own keys."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.data.training_rows import Form
from lethe.errors import LetheError

_NEW = "new.jsonl"
_TRAIN = "train_with_replay.jsonl"


@dataclass(frozen=True)
class MixtureFiles:
    """The files of a mixture.

    Attributes
    ----------
    folder
        Their folder, as it stands in the snippets.
    form
        Form of the rows of `new.jsonl` and `train_with_replay.jsonl`.
    rows
        Number of rows by the name of the file.
    tools
        Whether a row has tools.
    """

    folder: Path
    form: Form
    rows: Mapping[str, int]
    tools: bool = False

    def path(self, name: str) -> str:
        """Path of a file, as it stands in the snippets."""
        return (self.folder / name).as_posix()

    @property
    def replay(self) -> str:
        """Name of the file of replayed rows in the form of the new ones."""
        return f"plain/replay.{self.form}.jsonl"

    @property
    def columns(self) -> list[str]:
        """Columns of the rows that are learned from."""
        return ["prompt", "completion"] if self.form == "prompt_completion" else [self.form]


def snippet_files(trainer: str, files: MixtureFiles) -> dict[str, str]:
    """Name and content of the files that a trainer's settings are written to.

    Raises
    ------
    LetheError
        If the trainer is unknown, or cannot read the form of the rows.
    """
    check_form(trainer, files.form)
    return TRAINERS[trainer](files)


def check_form(trainer: str, form: Form) -> None:
    """Refuses an unknown trainer, and one that cannot read the form of the rows.

    Raises
    ------
    LetheError
        With the trainers that are known, or what to do instead.
    """
    if trainer not in TRAINERS:
        raise LetheError(f"no snippet for the trainer {trainer!r}; known: {', '.join(TRAINERS)}")
    if not can_read(trainer, form):
        raise LetheError(
            "Megatron-Bridge reads plain text from its own binary files, not from rows; use "
            "--for jsonl and convert new.jsonl and the replay file"
        )


def can_read(trainer: str, form: Form) -> bool:
    """Whether a trainer reads rows of this form."""
    return not (trainer == "megatron-bridge" and form == "text")


def _trl(files: MixtureFiles) -> dict[str, str]:
    lines = [
        "# trl sft --config trl.yaml (add your model and training arguments).",
        "# No `fraction` here: it would shrink the mix.",
        "datasets:",
        "  - path: json",
        f"    data_files: {_quoted(files.path(_TRAIN))}",
        "    split: train",
    ]
    # With this key, trl drops all other columns. Only some rows with tools have a column `tools`,
    # and the file has no column that is not learned from.
    if not files.tools:
        lines.append(f"    columns: {json.dumps(files.columns)}")
    if files.form == "messages":
        lines.append("assistant_only_loss: true # the loss is on the assistant's turns")
    return {"trl.yaml": _text(lines)}


def _axolotl(files: MixtureFiles) -> dict[str, str]:
    kinds: dict[Form, list[str]] = {
        "messages": ["    type: chat_template", "    field_messages: messages"],
        "prompt_completion": [
            "    type:",
            "      field_instruction: prompt",
            "      field_output: completion",
            '      format: "{instruction}"',
            '      no_input_format: "{instruction}"',
        ],
        "text": ["    type: completion", "    field: text"],
    }
    lines = [
        "# Add these keys to your axolotl configuration. The sets are joined and shuffled.",
        "# Axolotl has no working `weight` per set; the numbers of rows are the weights.",
        "datasets:",
    ]
    if files.form == "messages":
        sets: list[tuple[str, Form]] = [
            (_NEW, "messages"),
            ("plain/replay.chats.jsonl", "messages"),
            ("plain/replay.passages.jsonl", "text"),
        ]
    else:
        sets = [(_NEW, files.form), (files.replay, files.form)]
    for name, form in sets:
        if name in files.rows:
            lines += [f"  - path: {_quoted(files.path(name))}", "    ds_type: json"]
            lines += kinds[form]
    lines.append("shuffle_merged_datasets: true")
    return {"axolotl.yaml": _text(lines)}


def _llama_factory(files: MixtureFiles) -> dict[str, str]:
    entry: dict[str, Any] = {"columns": {"prompt": "text"}}
    if files.form == "messages":
        columns = {"messages": "messages"}
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        }
        if files.tools:
            # Its reader of sharegpt knows no calls of tools, and requires the column in every file.
            columns["tools"] = "tools"
            tags |= {"observation_tag": "tool", "function_tag": "function_call"}
        formatting = "openai" if files.tools else "sharegpt"
        entry = {"formatting": formatting, "columns": columns, "tags": tags}
    elif files.form == "prompt_completion":
        entry = {"columns": {"prompt": "prompt", "response": "completion"}}
    names = {"lethe_new": _NEW, "lethe_replay": files.replay}
    info = {}
    for name, file in names.items():
        info[name] = {"file_name": file, **entry}
    stage = "pt" if files.form == "text" else "sft"
    lines = [
        "# Add these keys to your LLaMA-Factory configuration.",
        f"stage: {stage}",
        f"dataset_dir: {_quoted(files.folder.as_posix())} # it holds dataset_info.json",
        "dataset: lethe_new,lethe_replay",
        "mix_strategy: concat # every row once; the loader shuffles",
    ]
    if files.tools:
        lines.append(
            '# Its format openai, which reads tools, adds "detailed thinking off" to system turns.'
        )
    return {
        "dataset_info.json": json.dumps(info, indent=2) + "\n",
        "llama_factory.yaml": _text(lines),
    }


def _ms_swift(files: MixtureFiles) -> dict[str, str]:
    # It finds prompt, completion and text by their names.
    verb = "pt" if files.form == "text" else "sft"
    lines = [
        "# Add your model and training arguments. The number after # is the number of rows.",
        f"swift {verb} \\",
    ]
    sets = [shlex.quote(f"{files.path(name)}#{files.rows[name]}") for name in (_NEW, files.replay)]
    lines.append(f"  --dataset {' '.join(sets)}")
    return {"ms_swift.sh": _text(lines)}


def _megatron_bridge(files: MixtureFiles) -> dict[str, str]:
    preprocessing = "ChatSFTPreprocessingConfig"
    arguments = ""
    if files.form == "prompt_completion":
        preprocessing = "PromptCompletionSFTPreprocessingConfig"
        arguments = 'prompt_column="prompt", completion_column="completion", separator=""'
    lines = [
        '"""Replace the dataset of your Megatron-Bridge recipe by this one."""',
        "",
        "from megatron.bridge.data.builders import GPTSFTDatasetConfig",
        f"from megatron.bridge.data.sft_processing import {preprocessing}",
        "",
        f"# Copy or link {files.path(_TRAIN)} as training.jsonl.",
        "dataset = GPTSFTDatasetConfig(",
        f"    dataset_root={_quoted(files.folder.as_posix())},",
        "    seq_length=2048,",
        f"    preprocessing={preprocessing}({arguments}),",
        "    do_validation=False,",
        "    do_test=False,",
        ")",
        "# A configuration with several sources takes source_weights, which count epochs:",
        f"# sources = [{_quoted(files.path(_NEW))}, {_quoted(files.path(files.replay))}]",
        "source_weights = [1.0, 1.0]",
    ]
    return {"megatron_bridge.py": _text(lines)}


def _jsonl(files: MixtureFiles) -> dict[str, str]:
    return {}


def _quoted(path: str) -> str:
    """A path in the quotes that YAML and Python read.

    Letters stay as they are: as escapes, JSON writes an emoji in two halves, which YAML and Python
    do not join again.
    """
    return json.dumps(path, ensure_ascii=False)


def _text(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


TRAINERS: dict[str, Callable[[MixtureFiles], dict[str, str]]] = {
    "trl": _trl,
    "axolotl": _axolotl,
    "llama-factory": _llama_factory,
    "ms-swift": _ms_swift,
    "megatron-bridge": _megatron_bridge,
    "jsonl": _jsonl,
}
