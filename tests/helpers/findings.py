"""The findings of a tiny experiment, written to the workflow's files and read from them."""

from pathlib import Path

import numpy as np

from lethe import tables
from lethe.analysis import low_rank
from lethe.completion.evaluation import DOMAIN_MEAN, TASK_MEAN
from lethe.config.task_table import Task
from lethe.data.examples import Example, UpstreamExample, write_upstream
from lethe.matrix import forgetting_matrix, rows
from lethe.matrix.rows import Row
from lethe.replay.comparison import compare
from lethe.report.findings import Findings, read_findings

TASKS = {
    "007": Task(name="007", group="NA", split="train"),
    "null": Task(name="null", group="words", split="train"),
    "sums": Task(name="sums", group="NA", split="test"),
    "poems": Task(name="poems", group="words", split="test"),
}
METRICS = ("rmse", "mae", "spearman", "top_1_percent", "top_10_percent", "f1", "auc")
# Settings of the experiment that these tables come from, as far as the page reads them.
SETTINGS = {
    "experiment": "tiny",
    "completion": {"threshold": 0.2},
    "replay": {"strategies": ["none", "random"], "ratio": 0.125},
}
SCRIPT = "<script>alert('x')</script>"


def z(seed: int = 0, missing: bool = True) -> forgetting_matrix.Matrix:
    """Four tasks by twelve examples; one example has no values, another lacks one."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.2, 0.1, (4, 12)).astype(np.float32)
    if missing:
        values[:, 5] = np.nan
        values[2, 7] = np.nan
    return forgetting_matrix.Matrix(values, list(TASKS), [f"a-{i:05d}" for i in range(12)])


def upstream() -> list[UpstreamExample]:
    """Upstream examples whose texts and domains look like markup."""
    texts = [f"{SCRIPT} {number}" for number in range(11)] + ["ünï & co"]
    examples = []
    for i, text in enumerate(texts):
        domain = f"<b>{'mn'[i % 2]}</b>"
        examples.append(UpstreamExample(f"a-{i:05d}", domain, "heldout", Example(text=text)))
    return examples


def completion(value: float = 0.2) -> list[dict]:
    """Lines of completion.csv for both splits, two methods and two numbers of probes."""
    lines = []
    for split in ("in_domain", "out_of_domain"):
        for method in ("random", "mf"):
            for k in (1, 3):
                for metric in METRICS:
                    line = {"split": split, "method": method, "k": k, "probes": "random"}
                    line |= {"metric": metric, "value": value / k}
                    lines.append(line | {"seed": "0"})
                    interval = {"low": value / k - 0.01, "high": value / k + 0.01}
                    lines.append(line | interval | {"seed": "all", "sd_over_seeds": 0.001})
    return lines


def means(value: float = 0.02) -> list[dict]:
    """Lines of completion.csv for the means of tasks and domains, from one probe of `gaussian`."""
    lines = []
    for metric in (*METRICS, *TASK_MEAN, *DOMAIN_MEAN):
        line = {"split": "in_domain", "method": "gaussian", "k": 1, "probes": "random"}
        line |= {"metric": metric, "value": value, "low": value, "high": value}
        lines.append(line | {"seed": "all", "sd_over_seeds": 0.001})
    return lines


def precision() -> list[dict]:
    """Lines of precision.csv for two numbers of training tasks and of probes."""
    lines = []
    for count in (2, 20):
        for k in (1, 3):
            line = {"training_tasks": count, "k": k, "top_10_percent": 0.1 * k}
            line |= {"column_mean_top_10_percent": 0.15, "task_mean_error": 0.05 / k}
            lines.append(line | {"rmse": 0.2 / k})
    return lines


def summaries(values: forgetting_matrix.Matrix, **changes) -> list[dict]:
    """Lines of rows.csv; the second fine-tune learned nothing."""
    about = {
        "eval_loss_before": 3.0,
        "steps": 5,
        "training_loss_first": 3.0,
        "training_loss_last": 1.0,
        "training_seconds": 1.0,
        "scoring_seconds": 1.0,
        "peak_memory_mb": 100.0,
        "truncated": 1,
        "missing": 1,
        "eval_missing": 0,
        "training_truncated": 2,
        "training_empty": 0,
    }
    lines = []
    for name, values_of_task in zip(values.tasks, values.values, strict=True):
        eval_loss_after = 3.5 if name == "null" else 1.0
        row = Row(
            values.example_ids,
            np.zeros_like(values_of_task),
            values_of_task,
            np.ones(12),
            settings={},
            about=about | {"eval_loss_after": eval_loss_after} | changes,
        )
        task = TASKS[name]
        lines.append(rows.summarise_row(row, task))
    return lines


def runs(strategies=("none", "random", "mf", "oracle")) -> list[dict]:
    """Lines of replay.csv; the same on every task, so that intervals have no width."""
    lines = []
    for number, strategy in enumerate(strategies):
        for task in ("sums", "poems"):
            lines.append(
                {
                    "strategy": strategy,
                    "task": task,
                    "seed": 0,
                    "steps": 5,
                    "missing": 0,
                    "heldout_forgetting": 0.3 - 0.1 * number,
                    "eval_loss_before": 3.0,
                    "eval_loss_after": 1.0,
                    "replayed": 4,
                    "replayed_distinct": 4,
                    "effective_sample_size": 2.5,
                    "training_seconds": 1.0,
                }
            )
    return lines


def contrast(**changes):
    """A line of replay_contrasts.csv."""
    line = {
        "question": "selection",
        "run": "gaussian_kl",
        "reference": "random_kl",
        "measure": "heldout_forgetting",
        "status": "planned",
        "tasks": 29,
        "seeds": 1,
        "mean": 0.047,
        "reference_mean": 0.054,
        "difference": -0.007,
        "low": -0.009,
        "high": -0.005,
        "tasks_lower": 27,
        "p": 7e-8,
        "p_holm": 2.1e-7,
        "least_p": 1e-8,
        "largest_difference": 0.002,
        "largest_difference_task": "sums",
    }
    return line | changes


def write_tables(
    folder: Path, models=("one", "two"), *, imported: bool = False
) -> dict[str, list[str] | str]:
    """Writes the tables and returns their paths in the form of a rule's inputs.

    `imported` writes the tables of an experiment on an imported matrix, without fine-tunes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = ["matrices", "curves", "completions", "precision"]
    if not imported:
        kinds += ["summaries", "comparisons", "runs"]
    paths: dict = {kind: [] for kind in kinds}
    for seed, model in enumerate(models):
        values = z(seed)
        path = {kind: folder / f"{model}-{kind}" for kind in kinds}
        forgetting_matrix.write_matrix(path["matrices"], values)
        tables.write_csv(path["curves"], low_rank.rank_curve(values.values).records())
        tables.write_csv(path["completions"], completion())
        tables.write_csv(path["precision"], precision())
        if not imported:
            tables.write_csv(path["summaries"], summaries(values))
            tables.write_csv(path["comparisons"], compare(runs()))
            tables.write_csv(path["runs"], runs())
        for kind in kinds:
            paths[kind].append(str(path[kind]))
    paths["upstream"] = []
    if not imported:
        paths["upstream"] = str(folder / "upstream.parquet")
        write_upstream(folder / "upstream.parquet", upstream())
    return paths


def make_findings(folder: Path, models=("one", "two"), *, imported: bool = False) -> Findings:
    """Writes the tables and reads them."""
    return read_findings(write_tables(folder, models, imported=imported), models, TASKS)
