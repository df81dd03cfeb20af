"""The cache of fetched packages: in another place, damaged, and shared by two runs."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.experiment import Workspace, job_counts, make_experiment

TARGETS = ("results/tiny/upstream.parquet", "results/tiny/tasks/add/train.parquet")


def make_package(folder: Path) -> str:
    """A small source package of BIG-bench, as PyPI would serve it; its SHA-256."""
    members = {
        "PKG-INFO": b"Metadata-Version: 2.1\nName: bigbench\nVersion: 9.9.9\n",
        "setup.py": b"from setuptools import setup\nsetup(name='bigbench', version='9.9.9')\n",
    }
    for task in ("notes", "add", "double", "upper", "reverse"):
        examples = [{"input": f"{task} {i} " * 5, "target": str(2 * i)} for i in range(100)]
        content = json.dumps({"examples": examples}).encode()
        members[f"bigbench/benchmark_tasks/{task}/task.json"] = content
    folder.mkdir()
    path = folder / "bigbench-9.9.9.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"bigbench-9.9.9/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def bench(tmp_path):
    """Makes a workspace whose tasks come from BIG-bench, with a cache that all of them share."""
    digest = make_package(tmp_path / "index")
    environment = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "index"),
        "LETHE_CACHE": str(tmp_path / "cache"),
    }

    def make(name: str) -> Workspace:
        make_experiment(tmp_path / name)
        workspace = Workspace(tmp_path / name, environment=environment)
        source = {"kind": "bigbench", "version": "9.9.9", "sha256": digest}
        workspace.change(sources={"bench": source})
        workspace.change(upstream={"domains": {"notes": "bench:notes", "code": "local:code.txt"}})
        table = workspace.folder / "tasks.csv"
        lines = table.read_text().replace("local:", "bench:").replace(".jsonl", "")
        table.write_text(lines)
        return workspace

    return make


def test_a_cache_in_another_place_reruns_nothing_and_a_damaged_one_is_repaired(bench, tmp_path):
    workspace = bench("first")
    workspace.run("--", *TARGETS)
    archive = tmp_path / "cache/bigbench-9.9.9.zip"
    content = archive.read_bytes()
    (tmp_path / "cache").rename(tmp_path / "moved")
    elsewhere = {"LETHE_CACHE": str(tmp_path / "moved")}
    moved = replace(workspace, environment=workspace.environment | elsewhere)
    assert "Nothing to be done" in moved.run("--dry-run", "--", *TARGETS)
    assert "Nothing to be done" in workspace.run("--dry-run", "--", *TARGETS)
    damaged = tmp_path / "moved" / archive.name
    damaged.write_bytes(content[: len(content) // 2])
    output = moved.run("--", "results/tiny/tasks/double/train.parquet")
    assert "bigbench-9.9.9.zip: is damaged" in output
    assert damaged.read_bytes() == content


def test_a_new_task_of_a_package_prepares_no_finished_task_again(bench):
    """Snakemake runs all that read a missing record, and earlier versions removed their records."""
    workspace = bench("first")
    workspace.run("--", *TARGETS)
    with (workspace.folder / "tasks.csv").open("a") as table:
        table.write("more,numbers,bench:notes,train\n")
    targets = (*TARGETS, "results/tiny/tasks/more/train.parquet")
    planned = job_counts(workspace.run("--dry-run", "--quiet", "rules", "--", *targets))
    assert planned == {"prepare_task": 1}
    shutil.rmtree(workspace.results / "packages")
    assert "Nothing to be done" in workspace.run("--dry-run", "--", *TARGETS)
    planned = job_counts(workspace.run("--dry-run", "--quiet", "rules", "--", *targets))
    assert planned == {"prepare_task": 1}
    before = {path: (workspace.folder / path).stat().st_mtime_ns for path in TARGETS}
    workspace.run("--", *targets)
    assert {path: (workspace.folder / path).stat().st_mtime_ns for path in TARGETS} == before


def test_two_runs_that_start_with_an_empty_cache_both_end_well(bench):
    processes = []
    for name in ("first", "second"):
        workspace = bench(name)
        process = subprocess.Popen(
            workspace.command("--", *TARGETS),
            env=os.environ | workspace.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
