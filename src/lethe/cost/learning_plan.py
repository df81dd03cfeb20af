"""The experiment from which a predictor is learned, and what it will cost."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lethe.config.task_table import Task
from lethe.config.yaml_file import read_yaml
from lethe.errors import ExperimentError, LetheError

# Rules whose jobs a predictor needs.
_NEEDED = ("score_base", "measure_row")


@dataclass(frozen=True)
class LearningSettings:
    """Settings of the fine-tunes from which a predictor is learned.

    They should be like those of the fine-tune that is watched: the same method and a like number of
    steps.

    Attributes
    ----------
    dtype
        `float32`, or `autocast`: training and scoring compute in bfloat16 with float32 weights.
    """

    method: str = "full"
    steps: int = 40
    batch: int = 4
    lr: float | None = None
    max_tokens: int = 256
    lora_rank: int = 16
    threads: int = 1
    dtype: str = "float32"

    def recipe(self) -> dict[str, Any]:
        """The section `recipe` of the experiment."""
        rate = self.lr
        if rate is None:
            # Adapters are usually trained at ten times the rate of all weights.
            rate = 1e-3 if self.method == "lora" else 1e-4
        recipe: dict[str, Any] = {
            "method": self.method,
            "steps": self.steps,
            "max_epochs": None,
            "batch": self.batch,
            "lr": rate,
            "max_tokens": self.max_tokens,
        }
        if self.method == "lora":
            recipe["lora"] = {"rank": self.lora_rank, "alpha": 2 * self.lora_rank, "dropout": 0.05}
        if self.dtype == "autocast":
            recipe["dtype"] = "bfloat16"
        return recipe

    def scoring(self) -> dict[str, Any]:
        """The section `scoring` of the experiment."""
        scoring: dict[str, Any] = {"max_tokens": self.max_tokens, "tokens_per_batch": "auto"}
        if self.dtype == "autocast":
            scoring["dtype"] = "autocast"
        return scoring


def learning_experiment(
    name: str,
    *,
    model: Mapping[str, Any],
    pool: Path,
    table: Path,
    sources: Mapping[str, Any],
    settings: LearningSettings,
) -> dict[str, Any]:
    """The content of the experiment's YAML file.

    Parameters
    ----------
    model
        Entry of the model under `models`, without its threads.
    pool
        The upstream examples.
    table
        The task table.
    sources
        Sources of the tasks' examples.
    """
    return {
        "experiment": name,
        "seed": 0,
        "tasks": str(table),
        "sources": dict(sources),
        "upstream": {"pool": str(pool)},
        "models": {"model": {**model, "threads": settings.threads}},
        "recipe": settings.recipe(),
        "task_examples": {"train": settings.steps * settings.batch, "eval": 24},
        "scoring": settings.scoring(),
        "completion": {"methods": ["gaussian"], "probes": [30], "seeds": [0]},
    }


def read_sources(path: Path) -> dict[str, Any]:
    """The section `sources` of an experiment, or of a file that holds nothing else.

    Raises
    ------
    ExperimentError
        If the file is no valid YAML, or no mapping.
    """
    content = read_yaml(path)
    sources = content.get("sources", content) if isinstance(content, dict) else None
    if not isinstance(sources, dict):
        raise ExperimentError(
            str(path),
            ["is no mapping of sources; write a line such as `own: {kind: files, folder: FOLDER}`"],
        )
    return sources


def select_tasks(tasks: Sequence[Task], count: int, table: Path) -> list[Task]:
    """The first `count` tasks of a table; the last one is a test task, as experiments need one.

    The predictor is fitted on all of them. Groups are visited in turn, so that the tasks differ.

    Raises
    ------
    LetheError
        If there are fewer tasks, or fewer than three are wanted.
    """
    if not 3 <= count <= len(tasks):
        raise LetheError(
            f"{table}: {count} tasks are to be learned from, but it has {len(tasks)}, and at "
            f"least 3 are needed; give --tasks from 3 to {len(tasks)}"
        )
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group, []).append(task)
    selected: list[Task] = []
    while len(selected) < count:
        for group in groups.values():
            if group and len(selected) < count:
                selected.append(group.pop(0))
    return selected


def write_task_table(path: Path, tasks: Sequence[Task]) -> None:
    """Writes the tasks as a table of an experiment; all but the last are training tasks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["name", "group", "source", "split"])
        for number, task in enumerate(tasks):
            split = "test" if number == len(tasks) - 1 else "train"
            writer.writerow([task.name, task.group, task.source, split])


@dataclass(frozen=True)
class LearningCost:
    """Number of fine-tunes, and seconds of all jobs that a predictor needs."""

    fine_tunes: int
    seconds: float

    @classmethod
    def read(cls, plan: Path) -> "LearningCost":
        """Reads the lines of plan.csv that a predictor needs."""
        fine_tunes = 0
        seconds = 0.0
        with plan.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                if line["rule"] in _NEEDED:
                    seconds += float(line["seconds"])
                    fine_tunes += int(line["jobs"]) if line["rule"] == "measure_row" else 0
        return cls(fine_tunes=fine_tunes, seconds=seconds)

    def sentence(self) -> str:
        """The cost in words."""
        minutes = self.seconds / 60
        duration = f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
        if minutes < 2:
            duration = f"{self.seconds:.0f} seconds"
        return (
            f"{self.fine_tunes} fine-tunes and one scoring of the base model: about {duration} on "
            "this machine, one job after the other, without start-up"
        )
