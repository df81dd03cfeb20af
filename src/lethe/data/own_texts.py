"""Texts and domains of the examples of a matrix that was measured elsewhere."""

import logging
from collections.abc import Sequence
from pathlib import Path

from lethe.config.csv_lines import CsvError
from lethe.data.examples import Example, UpstreamExample, read_upstream
from lethe.data.records import csv_records
from lethe.errors import LetheError

logger = logging.getLogger(__name__)

_COLUMNS = ("example_id", "domain", "text")


def read_own_texts(path: Path, example_ids: Sequence[str]) -> list[UpstreamExample]:
    """Reads the texts of the examples of Z, in the order of Z. Others are left out and counted.

    Parameters
    ----------
    path
        A .csv file in UTF-8 with the columns example_id, domain and text, or a .parquet pool.
    example_ids
        Ids (N,) of the examples of Z, each once.

    Raises
    ------
    LetheError
        If the file cannot be read, an id stands twice, or an example of Z has no line or no domain.
    """
    pool = read_upstream(path) if path.suffix == ".parquet" else _read_csv(path)
    by_id = {example.example_id: example for example in pool}
    missing = [name for name in example_ids if name not in by_id]
    if missing:
        raise LetheError(
            f"{path}: has no line for {len(missing)} of the {len(example_ids)} examples of Z, such "
            f"as {missing[0]!r}; the column example_id must hold the ids of the matrix"
        )
    others = len(by_id) - len(example_ids)
    if others:
        logger.info("%s: %d texts of examples that are not in Z are left out", path, others)
    return [by_id[name] for name in example_ids]


def _read_csv(path: Path) -> list[UpstreamExample]:
    examples: dict[str, UpstreamExample] = {}
    try:
        for record in csv_records(path):
            missing = [name for name in _COLUMNS if name not in record]
            if missing:
                raise LetheError(
                    f"{path}: the header lacks {', '.join(missing)}; it needs {', '.join(_COLUMNS)}"
                )
            name = record["example_id"]
            domain = record["domain"]
            if name in examples:
                raise LetheError(f"{record.origin}: example_id {name!r} stands twice; rename one")
            if not name or not domain:
                raise LetheError(f"{record.origin}: an example needs an example_id and a domain")
            # An own matrix has no replay, so its examples are never replayed.
            examples[name] = UpstreamExample(
                example_id=name,
                domain=domain,
                split="heldout",
                example=Example(text=record["text"]),
            )
    except (OSError, UnicodeDecodeError, CsvError) as error:
        raise LetheError(f"{path}: cannot be read as CSV in UTF-8 ({error})")
    return list(examples.values())
