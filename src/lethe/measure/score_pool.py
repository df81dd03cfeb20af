"""Losses of any model on a pool of upstream examples, in the files that the workflow writes."""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.config.model_settings import Scoring
from lethe.data.examples import UpstreamFile, read_upstream, upstream_digest
from lethe.engine.model_files import ADAPTER
from lethe.engine.models import load_in_4_bits
from lethe.engine.pretrained import Pretrained
from lethe.engine.reader import Reader
from lethe.errors import LetheError, RowError
from lethe.files import atomic_write, read_json, refuse_unwritable, sha256
from lethe.matrix import rows
from lethe.matrix.model_cards import same_model
from lethe.measure.forgetting import base_losses

logger = logging.getLogger(__name__)

# Metadata of a file of token losses.
_SETTINGS = b"lethe_settings"
# Files of a PEFT folder that define the adapter.
_ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors")
# The base of an adapter that does not name it.
_UNNAMED = "a model without a name"


@dataclass(frozen=True)
class ModelToScore:
    """A model, and perhaps an adapter on it.

    Attributes
    ----------
    card
        Identity of the model (`lethe.engine.models.card`).
    adapter
        Folder of a PEFT adapter that was trained on this model.
    quantize
        `4bit`: the weights are quantised by bitsandbytes when they are loaded.
    """

    card: Mapping[str, Any]
    adapter: Path | None = None
    quantize: str | None = None

    def settings(self) -> dict[str, Any]:
        """The parts of a row's settings that describe the model.

        Raises
        ------
        LetheError
            If the folder of the adapter holds no adapter in safetensors.
        """
        settings: dict[str, Any] = {"model": dict(self.card)}
        if self.adapter is not None:
            settings["adapter"] = adapter_card(self.adapter)
        if self.quantize is not None:
            settings["quantize"] = self.quantize
        return settings

    def load(self, scoring: Scoring, gpus: int) -> Reader:
        """Loads model, adapter and tokenizer.

        Raises
        ------
        LetheError
            If a part does not load whole, or 4-bit weights are not possible on this machine.
        """
        if self.quantize is None:
            reader = Reader.load(dict(self.card), scoring, gpus)
        else:
            reader = _load_in_4_bits(self.card, scoring)
        if self.adapter is None:
            return reader
        return replace(reader, model=_with_adapter(reader.model, self.adapter))


def adapter_card(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of an adapter.

    Raises
    ------
    LetheError
        If a file is missing.
    """
    hashes = {}
    for name in _ADAPTER_FILES:
        path = folder / name
        if not path.is_file():
            raise LetheError(
                f"adapter {folder}: holds no {name}; give a folder that PEFT's save_pretrained "
                "wrote, with its weights in safetensors"
            )
        hashes[name] = sha256(path)
    return hashes


def base_of_adapter(folder: Path) -> str | None:
    """Name of the model that a PEFT folder says it belongs to; None for any other folder."""
    path = folder / ADAPTER
    if not path.is_file():
        return None
    return str(read_json(path).get("base_model_name_or_path") or _UNNAMED)


def _warn_of_other_base(adapter: Path, path: str) -> None:
    """Logs a warning if an adapter names a base model whose name differs in its last part too.

    An adapter fits every model of the same shape, so that loading it proves nothing.
    """
    base = base_of_adapter(adapter)
    if base in (None, _UNNAMED, path) or Path(str(base)).name == Path(path).name:
        return
    logger.warning(
        "adapter %s: says that it was trained on %s, but is scored on %s; if these are different "
        "models, give the first one",
        adapter,
        base,
        path,
    )


def _with_adapter(model: Any, folder: Path) -> Any:
    files = Pretrained(
        name=f"adapter {folder}",
        path=str(folder),
        advice=f"The adapter was trained on {base_of_adapter(folder)}; give that model",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = files.load_adapter(model)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            raise LetheError(
                f"adapter {folder}: some of its weights are missing ({warning.message}); save it "
                "again with save_pretrained"
            )
    return adapted.eval()


def _load_in_4_bits(card: Mapping[str, Any], scoring: Scoring) -> Reader:
    import importlib.util

    import torch

    missing = []
    if not torch.cuda.is_available():
        missing.append("a GPU with CUDA")
    if importlib.util.find_spec("bitsandbytes") is None:
        missing.append("the package bitsandbytes (pip install bitsandbytes)")
    if missing:
        raise LetheError(
            f"model {card['path']}: 4-bit weights need {' and '.join(missing)}; leave out "
            "--quantize, or use --dtype bfloat16"
        )
    kind = torch.float32 if scoring.dtype == "float32" else torch.bfloat16
    model, tokenizer = load_in_4_bits(dict(card), kind)
    return Reader(model, tokenizer, scoring)


def score_pool(
    model: ModelToScore,
    pool: Path,
    output: Path,
    *,
    scoring: Scoring,
    base: Path | None = None,
    tokens: bool = False,
    gpus: int = 0,
) -> rows.Row:
    """Scores a model on all examples of a pool, and writes its row.

    The row is that of the workflow's base.parquet: its losses before and after are the same. With
    `base`, the losses before are those of that file, so that the row holds what was forgotten.
    A run that was stopped continues from its last checkpoint, in a hidden folder beside the output.
    A file that holds this measurement already is left as it is.

    Parameters
    ----------
    scoring
        How losses are measured; with `base`, its settings and its batches are used instead.
    base
        Losses of the untouched base model, on the same pool.
    tokens
        Also write the losses of single tokens to the file of `token_file_of`.

    Raises
    ------
    LetheError
        If the model does not load whole, the output cannot be written, or the output, its file of
        token losses or the base were measured on another model or pool, or with other settings.
    """
    upstream = read_upstream(pool)
    settings = model.settings()
    before = None
    if base is not None:
        before = rows.read_row(base)
        scoring = _scoring_of(before, base)
        _refuse_other_pool(before, base, upstream, pool)
        _refuse_other_base(before, base, model)
        # The base's own identity, and which model was fine-tuned from it.
        settings = _settings_of_fine_tune(before, settings)
    settings["scoring"] = _scoring_settings(scoring, before)
    token_file = token_file_of(output)
    written = _written(output, settings, upstream, pool) if output.exists() else None
    if token_file.exists():
        measured = settings | {"upstream": upstream_digest(upstream)}
        problem = _token_file_problem(token_file, measured, written)
        if problem is None and written is not None:
            return written
        if problem is not None and tokens:
            raise RowError(
                f"{token_file}: exists and holds the token losses of another measurement "
                f"({problem}); move it away, or choose another name with -o"
            )
        if problem is not None:
            logger.warning(
                "%s: holds the token losses of another measurement (%s), not those of %s",
                token_file,
                problem,
                output,
            )
    if written is not None and not tokens:
        return written
    # Before the scoring, which may take hours.
    refuse_unwritable(output)
    if tokens:
        refuse_unwritable(token_file)
    if model.adapter is not None:
        _warn_of_other_base(model.adapter, str(model.card["path"]))
    checkpoint = output.with_name(f".{output.name}.unfinished")
    by_token: dict[int, np.ndarray] | None = {} if tokens else None
    row = base_losses(
        model.load(scoring, gpus),
        upstream,
        settings=settings,
        unfinished=checkpoint,
        by_token=by_token,
    )
    if before is not None:
        _refuse_other_tokens(before.select(row.example_ids), row, base)
        row = replace(row, loss_before=before.select(row.example_ids).loss_before)
    if by_token is not None:
        write_token_losses(token_file, row, by_token)
    if output.exists():
        # Only the tokens' losses were missing.
        row = rows.read_row(output)
    else:
        rows.write_row(output, row)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return row


def token_file_of(output: Path) -> Path:
    """The file of the token losses beside a row: `a.tokens.parquet` for `a.parquet`."""
    return output.with_name(output.name.removesuffix(".parquet") + ".tokens.parquet")


def write_token_losses(path: Path, row: rows.Row, by_token: Mapping[int, np.ndarray]) -> None:
    """Writes the columns example_id and losses, a list in nats per scored token, atomically.

    The file keeps the row's settings as metadata, because it is a file of its own that may stay
    when the row is moved away.
    """
    empty = np.zeros(0, dtype=np.float32)
    losses = [by_token.get(number, empty) for number in range(len(row.example_ids))]
    columns = {
        "example_id": pa.array(row.example_ids, pa.string()),
        "losses": pa.array(losses, pa.list_(pa.float32())),
    }
    metadata = {_SETTINGS: json.dumps(row.settings, sort_keys=True).encode()}
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), part)


def _token_file_problem(
    path: Path, settings: Mapping[str, Any], row: rows.Row | None
) -> str | None:
    """How a file of token losses differs from this measurement; None if it belongs to it.

    Parameters
    ----------
    row
        The row beside it, by which a file of earlier versions, which kept no settings, is judged.

    Raises
    ------
    RowError
        If the file cannot be read.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        if _SETTINGS in metadata:
            kept = json.loads(metadata[_SETTINGS])
            return _different_setting(kept, json.loads(json.dumps(settings)))
        losses = pq.read_table(path)["losses"].to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise RowError(
            f"{path}: not a readable file of token losses ({error}); move it away and run again"
        )
    if row is None:
        return "it does not name its model"
    if [len(values) for values in losses] != row.n_tokens.tolist():
        return "it has other numbers of tokens"
    means = np.array([np.mean(values) if values else np.nan for values in losses])
    if not np.allclose(means, row.loss_after, rtol=1e-4, atol=1e-5, equal_nan=True):
        return "its means are other losses"
    return None


def _different_setting(kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting that differs, in words; None if all are the same."""
    for key in sorted(kept.keys() | wanted.keys()):
        if kept.get(key) != wanted.get(key):
            return f"{key} {_short(kept.get(key))} instead of {_short(wanted.get(key))}"
    return None


def _scoring_of(base: rows.Row, path: Path) -> Scoring:
    scoring = Scoring(**base.settings["scoring"])
    if scoring.exact_match is not None:
        raise LetheError(
            f"{path}: measures which right answers are lost (scoring.exact_match); a comparison "
            "of losses needs a file without it"
        )
    # Base and fine-tune are measured in the same batches.
    budget = base.about.get("tokens_per_batch", scoring.budget)
    return scoring.model_copy(update={"tokens_per_batch": budget})


def _scoring_settings(scoring: Scoring, base: rows.Row | None) -> dict[str, Any]:
    return scoring.model_dump(mode="json") if base is None else dict(base.settings["scoring"])


def _settings_of_fine_tune(base: rows.Row, settings: Mapping[str, Any]) -> dict[str, Any]:
    described = dict(base.settings)
    for key in ("adapter", "quantize"):
        if key in settings:
            described[key] = settings[key]
    if "adapter" not in settings:
        described["fine_tuned"] = settings["model"]
    return described


def _refuse_other_pool(row: rows.Row, path: Path, upstream: UpstreamFile, pool: Path) -> None:
    if row.settings.get("upstream") != upstream_digest(upstream):
        raise RowError(
            f"{path}: was measured on another pool than {pool} (other examples, texts or splits); "
            "give the pool that it was measured on"
        )


def _refuse_other_base(row: rows.Row, path: Path, model: ModelToScore) -> None:
    """An adapter's base must be the model of the base losses."""
    if "adapter" in row.settings or "fine_tuned" in row.settings:
        raise RowError(
            f"{path}: holds the losses of a fine-tuned model; give those of the untouched base "
            "model as the base"
        )
    if model.quantize != row.settings.get("quantize"):
        raise RowError(
            f"{path}: was measured with quantize {row.settings.get('quantize')}, but this model "
            f"is to be scored with {model.quantize}; score both in the same way"
        )
    if model.adapter is not None and not same_model(model.card, row.settings["model"]):
        raise RowError(
            f"{path}: was measured on the model {row.settings['model'].get('path')}, but the "
            f"adapter is put on {model.card['path']}, which differs (path, weights, tokenizer or "
            "chat template); give the same model"
        )


def _refuse_other_tokens(base: rows.Row, row: rows.Row, path: Path | None) -> None:
    different = np.flatnonzero(base.n_tokens != row.n_tokens)
    if len(different):
        first = int(different[0])
        raise RowError(
            f"{path}: example {row.example_ids[first]!r} has {base.n_tokens[first]} scored tokens "
            f"there, but {row.n_tokens[first]} here ({len(different)} examples differ), so the "
            "fine-tuned model has another tokenizer or chat template than its base; score it with "
            "--chat-template, or save the base's tokenizer beside its weights"
        )


def _written(
    path: Path, settings: Mapping[str, Any], upstream: UpstreamFile, pool: Path
) -> rows.Row:
    """The row in an output file that exists, if it is this measurement."""
    row = rows.read_row(path)
    _refuse_other_pool(row, path, upstream, pool)
    for key in sorted(settings.keys() | row.settings.keys()):
        if key == "upstream" or row.settings.get(key) == settings.get(key):
            continue
        raise RowError(
            f"{path}: exists and was measured with another {key} ({_short(row.settings.get(key))} "
            f"instead of {_short(settings.get(key))}); choose another name with -o"
        )
    return row


def _short(value: Any) -> str:
    if isinstance(value, dict) and "path" in value:
        return str(value["path"])
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
