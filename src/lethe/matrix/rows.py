"""The file contract of one row of Z, and of the base losses that rows are compared with.

Columns: example_id, loss_before, loss_after, forgetting (nats per scored token, after - before,
NaN where nothing could be scored), n_tokens (tokens that carry loss). Rows that measure exact match
also have exact_match_before, exact_match_after, token_f1_before, token_f1_after (0 to 1, NaN where
no answer was generated) and answer (the text generated after the fine-tune). Their forgetting is 1
for a right answer that was lost, 0 for one that was kept, and NaN where the base model was wrong.

One JSON object in the Parquet metadata holds the settings, versions, device, timings, and a digest
of all columns and of the rest of the object. A file of several rows, which one job measured, has
a column `row` with their numbers, and one such object per row.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.config.task_table import Task
from lethe.errors import RowError
from lethe.files import atomic_write

_KEY = b"lethe"
_GRADES = ("exact_match_before", "exact_match_after", "token_f1_before", "token_f1_after")
# Entries of `about` that rows.csv repeats.
_SUMMARY_KEYS = (
    "eval_loss_before",
    "eval_loss_after",
    "steps",
    "training_loss_first",
    "training_loss_last",
    "training_truncated",
    "training_empty",
    "truncated",
    "missing",
    "eval_missing",
    "training_seconds",
    "scoring_seconds",
    "peak_memory_mb",
)


@dataclass(frozen=True)
class Answers:
    """Exact match and token F1 (N,), 0 to 1, and the answers generated after the fine-tune.

    NaN and None stand for examples without a generated answer. After a fine-tune, answers are
    generated only for the examples that the base model answered right.
    """

    exact_match_before: np.ndarray
    exact_match_after: np.ndarray
    token_f1_before: np.ndarray
    token_f1_after: np.ndarray
    text: list[str | None]

    @property
    def lost(self) -> np.ndarray:
        """1 - exact match after (N,) where the base model was right, NaN elsewhere."""
        return np.where(self.exact_match_before == 1, 1 - self.exact_match_after, np.float32("nan"))

    def select(self, index: np.ndarray) -> "Answers":
        """The answers to the examples with these numbers."""
        return Answers(
            exact_match_before=self.exact_match_before[index],
            exact_match_after=self.exact_match_after[index],
            token_f1_before=self.token_f1_before[index],
            token_f1_after=self.token_f1_after[index],
            text=[self.text[number] for number in index],
        )


@dataclass(frozen=True)
class Row:
    """Losses (N,) of the upstream examples before and after one fine-tune.

    `settings` must be equal in all rows of one Z. `about` describes this row only: evaluation
    losses, counts, timings. `answers` is present where exact match is measured.
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

    def select(self, example_ids: list[str], name: Path | str | None = None) -> "Row":
        """The part of the row that belongs to these examples, in their order.

        Parameters
        ----------
        name
            The row's file or name, for the message. None: it is the base row of an experiment.

        Raises
        ------
        RowError
            If the row does not hold one of the examples.
        """
        numbers = {example_id: number for number, example_id in enumerate(self.example_ids)}
        missing = [example_id for example_id in example_ids if example_id not in numbers]
        if missing and name is not None:
            raise RowError(
                f"{name}: lacks {len(missing)} of the {len(example_ids)} examples that are needed, "
                f"the first is {missing[0]!r}; score the model on the whole pool (lethe score)"
            )
        if missing:
            raise RowError(
                f"the base row lacks {len(missing)} upstream example(s), the first is "
                f"{missing[0]!r}: it was measured on other examples; move the file away and run "
                "again"
            )
        index = np.array([numbers[example_id] for example_id in example_ids], dtype=int)
        return Row(
            example_ids=list(example_ids),
            loss_before=self.loss_before[index],
            loss_after=self.loss_after[index],
            n_tokens=self.n_tokens[index],
            settings=self.settings,
            about=self.about,
            answers=None if self.answers is None else self.answers.select(index),
        )


def write_row(path: Path | str, row: Row) -> None:
    """Writes a row atomically."""
    table = _table_of(row)
    _write_table(path, table, _content_of(row, table))


def write_rows(path: Path | str, rows: Sequence[Row]) -> None:
    """Writes several rows of one job into one file, atomically, in their order.

    The file has a further column `row`, the row's number, and its metadata describes each row.
    """
    tables = []
    contents = []
    for number, row in enumerate(rows):
        table = _table_of(row)
        contents.append(_content_of(row, table))
        numbers = pa.array([number] * len(table), pa.int32())
        tables.append(table.append_column("row", numbers))
    _write_table(path, pa.concat_tables(tables), {"rows": contents})


def read_row(path: Path | str) -> Row:
    """Reads a row.

    Raises
    ------
    RowError
        Naming the file, if it is missing, truncated, not a row, holds several rows, or was changed
        after it was written.
    """
    rows = read_rows(path)
    if len(rows) != 1:
        raise RowError(
            f"{path}: holds {len(rows)} rows of one fine-tune, and one row is expected here; "
            "lethe.matrix.rows.read_rows reads them"
        )
    return rows[0]


def read_rows(path: Path | str) -> list[Row]:
    """Reads the rows of a file in their order: one, or several of one job.

    Raises
    ------
    RowError
        Naming the file, if it is missing, truncated, not a row, or was changed after it was
        written.
    """
    try:
        table = pq.ParquetFile(path).read()
        metadata = table.schema.metadata or {}
        if _KEY not in metadata:
            raise ValueError("a Parquet table of something else")
        content = json.loads(metadata[_KEY])
        rows = []
        unchanged = True
        for part, described in _parts(table, content):
            rows.append(_row_of(part, described))
            unchanged = unchanged and described["digest"] == _digest(part, described)
    except FileNotFoundError:
        raise RowError(
            f"{path}: not a readable row (there is no such file); run again to measure it"
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RowError(
            f"{path}: not a readable row ({error}); if it should be one, move it away and run "
            "again to measure it"
        )
    if not unchanged:
        raise RowError(
            f"{path}: its content does not match its digest, so the file was changed after it was "
            "measured; move it away and run again to measure it"
        )
    return rows


def _parts(table: pa.Table, content: dict[str, Any]) -> list[tuple[pa.Table, dict[str, Any]]]:
    """The table and the description of each row of a file."""
    if "rows" not in content:
        return [(table, content)]
    numbers = _to_numpy(table["row"])
    counts = np.bincount(numbers, minlength=len(content["rows"]))
    if len(counts) > len(content["rows"]) or (np.diff(numbers) < 0).any():
        raise ValueError("its column `row` does not fit the rows that it describes")
    parts = []
    start = 0
    for count, described in zip(counts.tolist(), content["rows"], strict=True):
        # Combined, so that the columns of the part are read without the other parts' values.
        parts.append((table.slice(start, count).combine_chunks(), described))
        start += count
    return parts


def _row_of(table: pa.Table, content: dict[str, Any]) -> Row:
    return Row(
        example_ids=table["example_id"].to_pylist(),
        loss_before=_to_numpy(table["loss_before"]),
        loss_after=_to_numpy(table["loss_after"]),
        n_tokens=_to_numpy(table["n_tokens"]),
        settings=_settings_of_today(content["settings"]),
        about=content["about"],
        answers=_answers(table) if "answer" in table.column_names else None,
    )


def _settings_of_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Without whether weights were kept: earlier versions listed it, and no loss depends on it."""
    if "recipe" not in settings:
        return settings
    recipe = {key: value for key, value in settings["recipe"].items() if key != "keep_weights"}
    return settings | {"recipe": recipe}


def _table_of(row: Row) -> pa.Table:
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
    return pa.table(columns)


def _content_of(row: Row, table: pa.Table) -> dict[str, Any]:
    """Settings and facts of a row, with the digest of all of it."""
    # To JSON and back, so that the digest covers exactly the content that a reader will get.
    text = json.dumps({"settings": row.settings, "about": row.about}, default=_to_json)
    content = json.loads(text)
    content["digest"] = _digest(table, content)
    return content


def _write_table(path: Path | str, table: pa.Table, content: dict[str, Any]) -> None:
    metadata = {_KEY: json.dumps(content, sort_keys=True).encode()}
    with atomic_write(path) as part:
        pq.write_table(table.replace_schema_metadata(metadata), part)


def _answers(table: pa.Table) -> Answers:
    return Answers(
        exact_match_before=_to_numpy(table["exact_match_before"]),
        exact_match_after=_to_numpy(table["exact_match_after"]),
        token_f1_before=_to_numpy(table["token_f1_before"]),
        token_f1_after=_to_numpy(table["token_f1_after"]),
        text=table["answer"].to_pylist(),
    )


# Arrow's own conversion to numpy imports pandas: a third of a second before a job's first batch.
def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if column.null_count or not column.num_chunks:
        return column.to_numpy()
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])


def _to_json(value: Any) -> Any:
    """For JSON: a numpy number stays a number; anything else becomes text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _digest(table: pa.Table, content: dict[str, Any]) -> str:
    described = {"settings": content["settings"], "about": content["about"]}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    names = ["example_id", "loss_before", "loss_after", "forgetting", "n_tokens"]
    names += [name for name in (*_GRADES, "answer") if name in table.column_names]
    for name in names:
        if name == "answer":
            digest.update(json.dumps(table[name].to_pylist()).encode())
        elif pa.types.is_string(table[name].type):
            digest.update("\n".join(table[name].to_pylist()).encode())
        else:
            digest.update(_to_numpy(table[name]).tobytes())
    return digest.hexdigest()


def summarise_row(row: Row, task: Task) -> dict[str, Any]:
    """The line of rows.csv on one fine-tune; losses in nats per scored token."""
    forgetting = row.forgetting
    finite = forgetting[np.isfinite(forgetting)]
    summary = {
        "task": task.name,
        "group": task.group,
        "split": task.split,
        "mean_forgetting": float(finite.mean()) if len(finite) else float("nan"),
        "sd_forgetting": float(finite.std()) if len(finite) else float("nan"),
    }
    for key in _SUMMARY_KEYS:
        summary[key] = row.about[key]
    # Rows of earlier versions have no date.
    if "date" in row.about:
        summary["date"] = row.about["date"]
    return summary
