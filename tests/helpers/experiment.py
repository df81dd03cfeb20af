"""A tiny experiment from raw text to report, and a folder to run it in."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MODEL = {
    "source": "scratch",
    "pretraining": {
        **{"vocabulary": 400, "hidden": 16, "layers": 1, "heads": 2, "context": 32},
        **{"steps": 30, "batch": 8, "lr": 0.01, "warmup_steps": 5, "checkpoint_steps": 10},
    },
}
TINY = {
    "experiment": "tiny",
    "tasks": "tasks.csv",
    "sources": {"local": {"kind": "files", "folder": "texts"}},
    "upstream": {
        **{"examples": 40, "words": 10, "corpus_words": 3000},
        "domains": {"code": "local:code.txt", "notes": "local:notes.txt"},
    },
    "models": {
        "olmo": {**MODEL, "architecture": "olmo"},
        "pythia": {**MODEL, "architecture": "gpt_neox"},
    },
    "recipe": {"steps": 12, "batch": 4, "lr": 0.01, "max_tokens": 32, "max_epochs": None},
    "task_examples": {"train": 40, "eval": 8},
    "scoring": {"max_tokens": 24},
    "completion": {
        **{"methods": ["random", "column_mean", "additive", "mf"], "probes": [3, 8]},
        **{"seeds": [0, 1], "threshold": 0.05},
    },
    "replay": {
        **{"strategies": ["none", "random", "additive", "oracle"], "ratio": 0.25},
        **{"probes": 5, "temperature": 0.1, "objective": "text", "dose": "mixed"},
    },
}
TASKS = """name,group,source,split
add,numbers,local:add.jsonl,train
double,numbers,local:double.jsonl,train
upper,words,local:upper.jsonl,train
reverse,words,local:reverse.jsonl,test
"""


def make_experiment(folder: Path) -> None:
    """Writes texts, tasks and the experiment's file into a folder."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py"))[:30]
    codes = [path.read_text("utf-8", errors="replace") for path in sources]
    notes = [ast.get_docstring(ast.parse(code)) or "" for code in codes]
    (texts / "code.txt").write_text("\n\n".join(codes), "utf-8")
    (texts / "notes.txt").write_text("\n\n".join(notes), "utf-8")
    words = re.findall(r"[a-z]{4,8}", " ".join(notes))[:60]
    pairs = {
        "add": [(f"{i} + {i + 3} =", str(2 * i + 3)) for i in range(60)],
        "double": [(f"twice {i} is", str(2 * i)) for i in range(60)],
        "upper": [(f"{word} in capitals", word.upper()) for word in words],
        "reverse": [(f"{word} backwards", word[::-1]) for word in words],
        "halve": [(f"half of {2 * i} is", str(i)) for i in range(60)],
    }
    for name, examples in pairs.items():
        lines = [json.dumps({"prompt": p, "answer": a}) for p, a in examples]
        (texts / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "tasks.csv").write_text(TASKS, "utf-8")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY), "utf-8")


@dataclass(frozen=True)
class Workspace:
    """A folder with the tiny experiment, and the code that runs it."""

    folder: Path
    code: Path = ROOT
    profile: str = "profiles/default"
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    def command(self, *arguments: str) -> list[str]:
        program = [sys.executable, "-m", "snakemake", "--cores", "2"]
        folders = ["--snakefile", str(self.code / "Snakefile"), "--directory", str(self.folder)]
        profile = ["--workflow-profile", str(self.code / self.profile)]
        experiment = ["--configfile", str(self.folder / "tiny.yaml")]
        return [*program, *folders, *profile, *experiment, *arguments]

    def run(self, *arguments: str, succeed: bool = True) -> str:
        """Runs Snakemake; returns its output."""
        process = subprocess.run(
            self.command(*arguments),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
            timeout=900,
            env=os.environ | {"LETHE_CACHE": str(self.folder / "cache")} | self.environment,
        )
        assert (process.returncode == 0) == succeed, process.stdout
        return process.stdout

    def planned(self) -> dict[str, int]:
        """Rule -> jobs that a run would start; empty if nothing is to be done."""
        return job_counts(self.run("--dry-run", "--quiet", "rules"))

    def change(self, **sections) -> None:
        """Changes keys in sections of the experiment's file."""
        with self.edit() as config:
            for section, values in sections.items():
                config[section] = {**config[section], **values}

    @contextmanager
    def edit(self) -> Iterator[dict[str, Any]]:
        """The experiment's file as a dictionary, which is written back at the end."""
        path = self.folder / "tiny.yaml"
        config = yaml.safe_load(path.read_text())
        yield config
        path.write_text(yaml.safe_dump(config), "utf-8")

    def rows(self) -> dict[Path, bytes]:
        """Every finished row, as bytes."""
        return {path: path.read_bytes() for path in sorted(self.results.glob("*/rows/*.parquet"))}


def job_counts(output: str) -> dict[str, int]:
    """The table of jobs that a dry run prints."""
    lines = re.findall(r"^(\w+) +(\d+)$", output, re.M)
    return {rule: int(count) for rule, count in lines if rule not in ("all", "total")}
