"""The file contract of one row of Z, and of the base losses it is measured against.

Columns: example_id, loss_before, loss_after, forgetting (nats per scored token, after - before,
NaN where nothing could be scored), n_tokens. Where right answers are what is forgotten there are
also exact_match_before, exact_match_after, token_f1_before, token_f1_after (0 to 1, NaN where the
model was not asked) and answer (what it said after), and forgetting is 1 for a right answer that
was lost, 0 for one that was kept, NaN where the base model had none. One JSON object in the parquet
metadata carries the settings, versions, device, timings and a digest of columns, settings and all
the rest.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import RowError
from lethe.files import atomic_write

_KEY = b"lethe"


@dataclass(frozen=True)
class Answers:
    """Exact match and token F1 (N,), 0 to 1, and the answers after; NaN and None: not asked.

    After a fine-tune only those are asked for that the base model had right.
    """

    exact_match_before: np.ndarray
    exact_match_after: np.ndarray
    token_f1_before: np.ndarray
    token_f1_after: np.ndarray
    text: list[str | None]

    @property
    def lost(self) -> np.ndarray:
        """1 - exact match after (N,) of what the base model had right, NaN elsewhere."""
        return np.where(self.exact_match_before == 1, 1 - self.exact_match_after, np.float32("nan"))

    def select(self, places: np.ndarray) -> "Answers":
        """Those of the examples at these places."""
        arrays = [getattr(self, name)[places] for name in _GRADES]
        return Answers(*arrays, [self.text[place] for place in places])


_GRADES = ("exact_match_before", "exact_match_after", "token_f1_before", "token_f1_after")


@dataclass(frozen=True)
class Row:
    """Losses (N,) of the upstream examples before and after one fine-tune.

    `settings` are what rows of one Z must share; `about` is what is this row's own: task,
    evaluation losses, counts, timings. `answers` are there where exact match is measured.
    """

    example_ids: list[str]
    loss_before: np.ndarray
    loss_after: np.ndarray
    n_tokens: np.ndarray
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    answers: Answers | None = None

    @property
    def forgetting(self) -> np.ndarray:
        """Rise in loss (N,) in nats per scored token, or right answers lost; NaN stays NaN."""
        if self.answers is not None:
            return self.answers.lost
        return self.loss_after - self.loss_before

    def select(self, example_ids: list[str]) -> "Row":
        """The row of these examples only, in their order."""
        place = {example_id: i for i, example_id in enumerate(self.example_ids)}
        if lacking := [example_id for example_id in example_ids if example_id not in place]:
            raise RowError(
                f"the base row lacks {len(lacking)} upstream example(s), the first is "
                f"{lacking[0]!r}: it is of other examples; delete it and run again"
            )
        chosen = np.array([place[example_id] for example_id in example_ids], dtype=int)
        losses = (self.loss_before[chosen], self.loss_after[chosen], self.n_tokens[chosen])
        answers = self.answers.select(chosen) if self.answers is not None else None
        return Row(list(example_ids), *losses, self.settings, self.about, answers)


def write(path: Path | str, row: Row) -> None:
    """Writes a row, whole or not at all."""
    columns = {
        "example_id": pa.array(row.example_ids, pa.string()),
        "loss_before": pa.array(row.loss_before, pa.float32()),
        "loss_after": pa.array(row.loss_after, pa.float32()),
        "forgetting": pa.array(row.forgetting, pa.float32()),
        "n_tokens": pa.array(row.n_tokens, pa.int32()),
    }
    if row.answers is not None:
        for name in _GRADES:
            columns[name] = pa.array(getattr(row.answers, name), pa.float32())
        columns["answer"] = pa.array(row.answers.text, pa.string())
    table = pa.table(columns)
    # Through JSON and back, so that the digest is of what a reader will find.
    content = json.loads(json.dumps({"settings": row.settings, "about": row.about}, default=_plain))
    content["digest"] = _digest(table, content)
    metadata = {_KEY: json.dumps(content, sort_keys=True).encode()}
    with atomic_write(path) as part:
        pq.write_table(table.replace_schema_metadata(metadata), part)


def read(path: Path | str) -> Row:
    """Reads a row.

    Raises
    ------
    RowError
        Naming the file, if it is truncated, not a row, or was changed after it was written.
    """
    try:
        table = pq.ParquetFile(path).read()
        content = json.loads(table.schema.metadata[_KEY])
        row = Row(
            table["example_id"].to_pylist(),
            *(_values(table[name]) for name in ("loss_before", "loss_after", "n_tokens")),
            content["settings"],
            content["about"],
            _answers(table) if "answer" in table.column_names else None,
        )
        unchanged = content["digest"] == _digest(table, content)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RowError(f"{path}: not a readable row ({error}); delete the file and run again")
    if not unchanged:
        raise RowError(
            f"{path}: its content does not match its digest: the file was changed after it was "
            "measured; delete it and run again"
        )
    return row


def _answers(table: pa.Table) -> Answers:
    return Answers(*(_values(table[name]) for name in _GRADES), table["answer"].to_pylist())


# Arrow's own conversion to numpy imports pandas: a third of a second before a job's first batch.
def _values(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count or not column.num_chunks:
        return column.to_numpy()
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _plain(value: Any) -> Any:
    """For JSON: a number of numpy's stays a number, whatever else becomes text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _digest(table: pa.Table, content: dict[str, Any]) -> str:
    said = {key: content[key] for key in ("settings", "about")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    names = ("example_id", "loss_before", "loss_after", "forgetting", "n_tokens")
    for name in (*names, *(n for n in (*_GRADES, "answer") if n in table.column_names)):
        if name == "answer":
            digest.update(json.dumps(table[name].to_pylist()).encode())
        elif pa.types.is_string(table[name].type):
            digest.update("\n".join(table[name].to_pylist()).encode())
        else:
            digest.update(_values(table[name]).tobytes())
    return digest.hexdigest()


def summary(task: str, group: str, split: str, row: Row) -> dict[str, Any]:
    """A line of rows.csv: what one fine-tune did, losses in nats per scored token."""
    forgetting = row.forgetting
    known = forgetting[np.isfinite(forgetting)]
    kept = (
        *("eval_loss_before", "eval_loss_after", "steps", "training_loss_first"),
        *("training_loss_last", "training_truncated", "training_empty", "truncated"),
        *("missing", "eval_missing", "training_seconds", "scoring_seconds", "peak_memory_mb"),
    )
    return {
        "task": task,
        "group": group,
        "split": split,
        "mean_forgetting": float(known.mean()) if len(known) else float("nan"),
        "sd_forgetting": float(known.std()) if len(known) else float("nan"),
        **{key: row.about[key] for key in kept},
    }
