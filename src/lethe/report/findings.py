"""The results of an experiment, read from its tables, for plots and the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from lethe.config.task_table import Task
from lethe.data.examples import UpstreamExample, read_examples, read_upstream
from lethe.files import read_json
from lethe.matrix import forgetting_matrix
from lethe.matrix.rows import read_row
from lethe.matrix.token_files import TokenLosses, read_token_file
from lethe.report.example_page import training_texts
from lethe.report.sequence_section import SequenceTables
from lethe.tables import read_csv


@dataclass(frozen=True)
class Findings:
    """Tables by model. A table that the experiment does not make is empty.

    An experiment on an imported matrix, for example, has no fine-tunes and so no `summaries`.
    """

    tasks: dict[str, Task]
    matrices: dict[str, forgetting_matrix.Matrix]
    curves: dict[str, pd.DataFrame]
    completions: dict[str, pd.DataFrame]
    summaries: dict[str, pd.DataFrame] = field(default_factory=dict)
    comparisons: dict[str, pd.DataFrame] = field(default_factory=dict)
    contrasts: dict[str, pd.DataFrame] = field(default_factory=dict)
    frontiers: dict[str, pd.DataFrame] = field(default_factory=dict)
    advice: dict[str, pd.DataFrame] = field(default_factory=dict)
    precision: dict[str, pd.DataFrame] = field(default_factory=dict)
    runs: dict[str, pd.DataFrame] = field(default_factory=dict)
    noise: dict[str, dict] = field(default_factory=dict)
    sanity: dict[str, dict] = field(default_factory=dict)
    associations: dict[str, pd.DataFrame] = field(default_factory=dict)
    finer: dict[str, pd.DataFrame] = field(default_factory=dict)
    transfer: pd.DataFrame | None = None
    sequences: dict[str, SequenceTables] = field(default_factory=dict)
    loadings: dict[str, pd.DataFrame] = field(default_factory=dict)
    domain_tests: dict[str, pd.DataFrame] = field(default_factory=dict)
    base_losses: dict[str, dict[str, float]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    upstream: list[UpstreamExample] = field(default_factory=list)
    tokens: dict[str, dict[str, list[TokenLosses]]] = field(default_factory=dict)
    """Model -> task -> token losses of the most forgotten examples."""
    training: dict[str, list[str]] = field(default_factory=dict)
    """Task -> texts of a few of its training examples."""

    @property
    def test_tasks(self) -> int:
        """The number of test tasks."""
        return sum(task.split == "test" for task in self.tasks.values())

    def in_domain_scores(self, model: str) -> pd.DataFrame:
        """The lines of completion.csv over all seeds: random probes, test tasks of the table."""
        scores = over_seeds(self.completions[model])
        return scores[scores.split == "in_domain"]

    @cached_property
    def examples(self) -> dict[str, UpstreamExample]:
        """The upstream examples by id, read once; empty for an own matrix."""
        return {example.example_id: example for example in self.upstream}

    @cached_property
    def binary(self) -> bool:
        """True if every Z records lost right answers (1 or 0) instead of rises in loss."""
        for z in self.matrices.values():
            finite = z.values[np.isfinite(z.values)]
            if not np.isin(finite, (0, 1)).all():
                return False
        return True

    @property
    def unit(self) -> str:
        """The unit of forgetting."""
        return "share of answers" if self.binary else "nats"

    @property
    def measure(self) -> str:
        """The measure of forgetting, with its unit, for axis labels."""
        return "right answers lost (share)" if self.binary else "rise in loss (nats)"


def over_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """The lines of completion.csv over all seeds, with random probes."""
    return scores[(scores.seed.astype(str) == "all") & (scores.probes == "random")]


def _read_sequences(paths: Sequence[str]) -> dict[str, SequenceTables]:
    """The tables on sequences by model, from paths `<model>/sequence_<table>.csv`."""
    by_model: dict[str, dict[str, pd.DataFrame]] = {}
    for path in map(Path, paths):
        name = path.stem.removeprefix("sequence_")
        by_model.setdefault(path.parent.name, {})[name] = read_csv(path)
    return {model: SequenceTables(**tables) for model, tables in by_model.items()}


def read_tokens(
    files: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, list[TokenLosses]]]:
    """Reads token losses, model -> task -> file; rows of an older version have no file.

    Raises
    ------
    RowError
        Naming the file, if one is damaged.
    """
    tokens: dict[str, dict[str, list[TokenLosses]]] = {}
    for model, of_model in files.items():
        tokens[model] = {}
        for task, path in of_model.items():
            if Path(path).exists():
                tokens[model][task] = read_token_file(path)
    return tokens


def read_findings(
    inputs: Mapping,
    models: Sequence[str],
    tasks: Mapping[str, Task],
    token_files: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Findings:
    """Reads the tables in `inputs`, which holds lists of paths in the order of `models`.

    Parameters
    ----------
    token_files
        Model -> task -> file of token losses. A file may be absent.

    Raises
    ------
    LetheError
        If a file cannot be read. The message names it.
    """

    def paths(key: str) -> Sequence[str]:
        # Snakemake passes a single file as a string, and no file as an empty list.
        value = inputs.get(key, [])
        return [value] if isinstance(value, str) else value

    def tables(key: str) -> dict[str, pd.DataFrame]:
        return {model: read_csv(path) for model, path in zip(models, paths(key), strict=False)}

    def records(key: str) -> dict[str, dict]:
        return {model: read_json(path) for model, path in zip(models, paths(key), strict=False)}

    matrices = {}
    for model, path in zip(models, paths("matrices"), strict=True):
        matrices[model] = forgetting_matrix.read_matrix(path)
    base_losses = {}
    versions = {}
    for model, path in zip(models, paths("bases"), strict=False):
        base = read_row(path)
        versions[model] = base.about.get("versions", {})
        base_losses[model] = dict(zip(base.example_ids, base.loss_before.tolist(), strict=True))
    training = {}
    for task, path in zip(tasks, paths("training"), strict=False):
        training[task] = training_texts(read_examples(path))
    transfer = paths("transfer")
    return Findings(
        tasks=dict(tasks),
        matrices=matrices,
        curves=tables("curves"),
        completions=tables("completions"),
        summaries=tables("summaries"),
        comparisons=tables("comparisons"),
        contrasts=tables("contrasts"),
        frontiers=tables("frontiers"),
        advice=tables("advice"),
        precision=tables("precision"),
        runs=tables("runs"),
        associations=tables("associations"),
        finer=tables("finer"),
        loadings=tables("loadings"),
        domain_tests=tables("domain_tests"),
        noise=records("noise"),
        sanity=records("sanity"),
        transfer=read_csv(transfer[0]) if transfer else None,
        sequences=_read_sequences(paths("sequences")),
        base_losses=base_losses,
        versions=versions,
        tokens=read_tokens(token_files),
        training=training,
        upstream=read_upstream(Path(inputs["upstream"])) if inputs["upstream"] else [],
    )
