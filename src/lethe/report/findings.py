"""All that an experiment found, read from its tables, for plots and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from lethe.data.examples import UpstreamExample, read_upstream
from lethe.files import read_json
from lethe.matrix import forgetting_matrix


@dataclass(frozen=True)
class Findings:
    """Tables by model. What an experiment does not make is empty: a matrix has no fine-tunes."""

    tasks: dict[str, tuple[str, str]]
    matrices: dict[str, forgetting_matrix.Matrix]
    curves: dict[str, pd.DataFrame]
    completions: dict[str, pd.DataFrame]
    summaries: dict[str, pd.DataFrame] = field(default_factory=dict)
    comparisons: dict[str, pd.DataFrame] = field(default_factory=dict)
    runs: dict[str, pd.DataFrame] = field(default_factory=dict)
    noise: dict[str, dict] = field(default_factory=dict)
    sanity: dict[str, dict] = field(default_factory=dict)
    associations: dict[str, pd.DataFrame] = field(default_factory=dict)
    transfer: pd.DataFrame | None = None
    upstream: list[UpstreamExample] = field(default_factory=list)

    @property
    def binary(self) -> bool:
        """True if every Z says which right answers were lost, 1 or 0, and not how losses rose."""
        return all(
            np.isin(z.values[np.isfinite(z.values)], (0, 1)).all() for z in self.matrices.values()
        )

    @property
    def unit(self) -> str:
        """Of forgetting."""
        return "share of answers" if self.binary else "nats"

    @property
    def measure(self) -> str:
        """What forgetting is here, with its unit."""
        return "right answers lost (share)" if self.binary else "rise in loss (nats)"


TABLES = ("curves", "completions", "summaries", "comparisons", "runs", "associations")
NAMES = ("task", "group", "split", "strategy", "method", "metric", "association")


def _table(path: str | Path) -> pd.DataFrame:
    """A CSV table; names stay text even if they look like numbers, or like `NA` or `null`."""
    columns = pd.read_csv(path, nrows=0).columns
    return pd.read_csv(
        path,
        dtype={name: str for name in columns if name in NAMES},
        keep_default_na=False,
        na_values={name: ["", "nan"] for name in columns if name not in NAMES},
    )


def read(inputs: Mapping, models: Sequence[str], tasks: Mapping[str, Sequence[str]]) -> Findings:
    """Reads the tables that `inputs` names: lists of paths in the order of `models`."""

    def paths(key: str) -> Sequence[str]:
        # A single file is a string, none is an empty list.
        given = inputs.get(key, [])
        return [given] if isinstance(given, str) else given

    def frames(key: str) -> dict[str, pd.DataFrame]:
        return {model: _table(path) for model, path in zip(models, paths(key), strict=False)}

    return Findings(
        {task: (group, split) for task, (group, split) in tasks.items()},
        {
            model: forgetting_matrix.read(path)
            for model, path in zip(models, paths("matrices"), strict=True)
        },
        **{key: frames(key) for key in TABLES},
        **{
            key: {m: read_json(path) for m, path in zip(models, paths(key), strict=False)}
            for key in ("noise", "sanity")
        },
        transfer=_table(paths("transfer")[0]) if paths("transfer") else None,
        upstream=read_upstream(Path(inputs["upstream"])) if inputs["upstream"] else [],
    )
