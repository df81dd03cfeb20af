"""The file contract of token losses: a few upstream examples of one row, token by token.

The file lies beside the row and is no part of it. It has one line per example, the most forgotten
first. Columns: example_id; tokens (the text of each token of the sequence); loss_before and
loss_after (nats per token in float16, null for a token that carries no loss, such as one of a
prompt). Several tokens can share one character: the last of them has its text, and the others are
empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lethe.errors import RowError
from lethe.files import atomic_write

# The largest number of float16.
MOST_LOSS = 65_504.0


@dataclass(frozen=True)
class TokenLosses:
    """The tokens of one upstream example, before and after one fine-tune.

    Attributes
    ----------
    tokens
        Text of each token (T,); together they are the sequence that the model reads.
    before, after
        Losses (T,) in nats, in float16; NaN for a token that carries no loss.
    """

    example_id: str
    tokens: list[str]
    before: np.ndarray
    after: np.ndarray


def write_token_file(path: Path | str, examples: Sequence[TokenLosses]) -> None:
    """Writes the token losses of one row atomically."""
    before = [_to_list(example.before) for example in examples]
    after = [_to_list(example.after) for example in examples]
    columns = {
        "example_id": pa.array([example.example_id for example in examples], pa.string()),
        "tokens": pa.array([example.tokens for example in examples], pa.list_(pa.string())),
        "loss_before": pa.array(before, pa.list_(pa.float16())),
        "loss_after": pa.array(after, pa.list_(pa.float16())),
    }
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns), part)


def read_token_file(path: Path | str) -> list[TokenLosses]:
    """Reads the token losses of one row.

    Raises
    ------
    RowError
        Naming the file, if it is truncated or not a file of token losses.
    """
    try:
        lines = pq.ParquetFile(path).read().to_pylist()
        examples = []
        for line in lines:
            example = TokenLosses(
                example_id=line["example_id"],
                tokens=line["tokens"],
                before=_to_array(line["loss_before"]),
                after=_to_array(line["loss_after"]),
            )
            if not len(example.tokens) == len(example.before) == len(example.after):
                raise ValueError(f"example {example.example_id!r} has columns of other lengths")
            examples.append(example)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise RowError(
            f"{path}: not a readable file of token losses ({error}); move it away, and the report "
            "is written without it"
        )
    return examples


def _to_list(losses: np.ndarray) -> list[np.float16 | None]:
    values: list[np.float16 | None] = []
    for value in losses.astype(np.float16):
        values.append(None if np.isnan(value) else value)
    return values


def _to_array(losses: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in losses], dtype=np.float16)
