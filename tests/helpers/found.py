"""A tiny experiment's findings, written to the workflow's files and read from them."""

from pathlib import Path

import numpy as np

from lethe import tables
from lethe.analysis import low_rank
from lethe.data.examples import Example, UpstreamExample, write_upstream
from lethe.matrix import forgetting_matrix, rows
from lethe.matrix.rows import Row
from lethe.replay.comparison import compare
from lethe.report import findings

TASKS = {
    "007": ("NA", "train"),
    "null": ("words", "train"),
    "sums": ("NA", "test"),
    "poems": ("words", "test"),
}
METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")
SCRIPT = "<script>alert('x')</script>"


def z(seed: int = 0, missing: bool = True) -> forgetting_matrix.Matrix:
    """Four tasks by twelve examples; of one example nothing is known, of one not all."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.2, 0.1, (4, 12)).astype(np.float32)
    if missing:
        values[:, 5] = np.nan
        values[2, 7] = np.nan
    return forgetting_matrix.Matrix(values, list(TASKS), [f"a-{i:05d}" for i in range(12)])


def upstream() -> list[UpstreamExample]:
    """Texts that would be markup, in a domain that would be too."""
    return [
        UpstreamExample(f"a-{i:05d}", f"<b>{'mn'[i % 2]}</b>", "heldout", Example(text=text))
        for i, text in enumerate([f"{SCRIPT} {number}" for number in range(11)] + ["ünï & co"])
    ]


def completion(value: float = 0.2) -> list[dict]:
    """Lines of completion.csv for both splits, two methods and two numbers of probes."""
    return [
        {
            **{"split": split, "method": method, "k": k, "probes": "random", "seed": seed},
            **{"metric": metric, "value": value / k},
            **({"low": value / k - 0.01, "high": value / k + 0.01} if seed == "all" else {}),
            **({"sd_over_seeds": 0.001} if seed == "all" else {}),
        }
        for split in ("in_domain", "out_of_domain")
        for method in ("random", "mf")
        for k in (1, 3)
        for metric in METRICS
        for seed in ("0", "all")
    ]


def summaries(values: forgetting_matrix.Matrix, **changes) -> list[dict]:
    """Lines of rows.csv; the second fine-tune learned nothing."""
    about = {"eval_loss_before": 3.0, "steps": 5, "training_loss_first": 3.0}
    about |= dict.fromkeys(("training_loss_last", "training_seconds", "scoring_seconds"), 1.0)
    about |= {"peak_memory_mb": 100.0, "truncated": 1, "missing": 1, "eval_missing": 0}
    about |= {"training_truncated": 2, "training_empty": 0}
    lines = []
    for task, row in zip(values.tasks, values.values, strict=True):
        facts = about | {"eval_loss_after": 3.5 if task == "null" else 1.0} | changes
        measured = Row(values.example_ids, np.zeros_like(row), row, np.ones(12), {}, facts)
        lines.append(rows.summary(task, *TASKS[task], measured))
    return lines


def runs(strategies=("none", "random", "mf", "oracle")) -> list[dict]:
    """Lines of replay.csv; the same on every task, so that intervals have no width."""
    return [
        {
            **{"strategy": strategy, "task": task, "seed": 0, "steps": 5, "missing": 0},
            **{"heldout_forgetting": 0.3 - 0.1 * place, "eval_loss_before": 3.0},
            **{"eval_loss_after": 1.0, "replayed": 4, "replayed_distinct": 4},
            **{"effective_sample_size": 2.5, "training_seconds": 1.0},
        }
        for place, strategy in enumerate(strategies)
        for task in ("sums", "poems")
    ]


def write(folder: Path, models=("one", "two"), own: bool = False) -> dict[str, list[str] | str]:
    """Writes the tables and returns their paths as a rule names them; `own`: a matrix alone."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ("matrices", "curves", "completions", "summaries", "comparisons", "runs")
    paths: dict = {kind: [] for kind in kinds[: 3 if own else 6]}
    for seed, model in enumerate(models):
        values = z(seed)
        path = {kind: folder / f"{model}-{kind}" for kind in paths}
        forgetting_matrix.write(path["matrices"], values)
        tables.write_csv(path["curves"], low_rank.rank_curve(values.values).records())
        tables.write_csv(path["completions"], completion())
        if not own:
            tables.write_csv(path["summaries"], summaries(values))
            tables.write_csv(path["comparisons"], compare(runs()))
            tables.write_csv(path["runs"], runs())
        for kind in paths:
            paths[kind].append(str(path[kind]))
    paths["upstream"] = [] if own else str(folder / "upstream.parquet")
    if not own:
        write_upstream(folder / "upstream.parquet", upstream())
    return paths


def read(folder: Path, models=("one", "two"), own: bool = False) -> findings.Findings:
    """The findings of what `write` wrote."""
    return findings.read(write(folder, models, own), models, TASKS)
