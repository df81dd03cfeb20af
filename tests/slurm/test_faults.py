"""Faults of clusters (lost jobs, too little memory or time, preemption): nothing is lost."""

import shutil
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
import yaml
from helpers.experiment import Workspace, make_experiment
from helpers.slurm import CLUSTER

from lethe.matrix import rows

pytestmark = pytest.mark.slurm
MODELS, TASKS = ("olmo", "pythia"), ("add", "double", "upper", "reverse")
ROW = "results/tiny/olmo/rows/add.parquet"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """Base models and their losses, made on this machine; one row of each model."""
    folder = tmp_path_factory.mktemp("faults") / "workspace"
    make_experiment(folder)
    created = Workspace(folder)
    tasks = [f"results/tiny/tasks/{task}/train.parquet" for task in TASKS]
    created.run("--nocolor", ROW, ROW.replace("olmo", "pythia"), *tasks)
    return created


@pytest.fixture
def workspace(trained, cluster, tmp_path) -> Workspace:
    """A copy of it for the cluster."""
    shutil.copytree(trained.folder, tmp_path / "workspace", symlinks=True)
    return Workspace(
        tmp_path / "workspace", profile="profiles/slurm", environment=cluster.environment
    )


@pytest.fixture
def run_on(cluster):
    """Starts Snakemake in a workspace while a fault is done to it; what it output, and its jobs."""

    def run(workspace, fault=lambda: None, *arguments, seconds=300, status=0):
        earlier = {job["JobId"] for job in cluster.jobs()}
        with (workspace.folder / "output.txt").open("w+") as stream:
            process = subprocess.Popen(
                workspace.command(*CLUSTER, *arguments),
                **{"stdout": stream, "stderr": subprocess.STDOUT},
                env=cluster.environment | {"LETHE_CACHE": str(workspace.folder / "cache")},
            )
            try:
                fault()
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
            stream.seek(0)
            text = stream.read()
        if code != status:
            cluster.run("scancel", "--user=root")  # The next test looks for jobs of its own.
        assert code == status, text
        return text, [job for job in cluster.jobs() if job["JobId"] not in earlier]

    return run


def request(workspace, model="olmo", **resources):
    models = yaml.safe_load((workspace.folder / "tiny.yaml").read_text())["models"]
    models[model]["resources"] = resources
    workspace.change(models=models)


def requeue(cluster, job):
    cluster.run("scontrol", "requeue", job)
    start_at_once(cluster, job)


def start_at_once(cluster, job):
    """A requeued job would wait two minutes before it may start."""
    cluster.wait(lambda: job in cluster.queued("PENDING"), 60)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")


def kill(cluster, job):
    cluster.run("scancel", "--signal=KILL", "--full", job)


def lose_node(cluster, job):
    name = cluster.run("sinfo", "--noheader", "--format=%n").strip()
    cluster.run("scontrol", "update", f"nodename={name}", "state=down", "reason=test")
    cluster.wait(lambda: job not in cluster.queued("RUNNING"), 60)
    cluster.revive(name)
    start_at_once(cluster, job)


@pytest.mark.parametrize("fault", [requeue, kill, lose_node], ids=lambda fault: fault.__name__)
def test_a_row_whose_job_is_lost_is_made_again_and_no_other(workspace, cluster, run_on, fault):
    request(workspace, gpu=1, mem_mb=1500, runtime=7, slurm_partition="gpu", together=1)
    before = workspace.rows()
    row = workspace.folder / ROW
    row.unlink()

    def lose():
        cluster.wait(lambda: cluster.queued("RUNNING"), 120)
        fault(cluster, cluster.queued("RUNNING")[0])

    run_on(workspace, lose, ROW)
    assert row.is_file()
    after = workspace.rows()
    assert {path for path in before if before[path] != after[path]} <= {row}


def losses(path) -> bytes:
    return rows.read_row(path).loss_after.tobytes()


def test_a_row_out_of_memory_is_tried_again_with_more(workspace, run_on):
    """SLURM kills it: importing torch alone takes more than it asked for at first."""
    path = workspace.folder / ROW
    expected, others = losses(path), {k: v for k, v in workspace.rows().items() if k != path}
    path.unlink()
    request(workspace, mem_mb=320, runtime=10)
    output, jobs = run_on(workspace, lambda: None, ROW)
    memory = [int(job["MinMemoryNode"].removesuffix("M")) for job in jobs]
    assert memory in ([320, 640], [320, 640, 960]), output
    assert {job["JobState"] for job in jobs[:-1]} <= {"OUT_OF_MEMORY", "CANCELLED", "FAILED"}
    assert jobs[-1]["JobState"] == "COMPLETED"
    # A third try takes smaller batches: the same up to rounding.
    off = np.frombuffer(losses(path), np.float32) - np.frombuffer(expected, np.float32)
    assert abs(off).max() <= (1e-4 if len(memory) == 3 else 0)
    assert {k: v for k, v in workspace.rows().items() if k != path} == others


def test_preempted_and_then_out_of_time_a_row_continues(workspace, cluster, run_on):
    """It ends with the bytes of an uninterrupted row, which is made beside it for comparison."""
    alone = Workspace(workspace.folder.with_name("alone"))
    shutil.copytree(workspace.folder, alone.folder, symlinks=True)
    alone.change(recipe={"steps": 1000, "lr": 1e-4})
    began = time.monotonic()
    alone.run("--nocolor", ROW)
    about = rows.read_row(alone.folder / ROW).about
    # On a slow machine, a job needs most of a minute until its training begins.
    minutes = 1 + int(time.monotonic() - began - about["training_seconds"]) // 20
    # So many steps that the time is not enough for them. SLURM looks every half minute.
    steps = int((60 * minutes + 40) * about["steps"] / about["training_seconds"])
    for each in (workspace, alone):
        each.change(recipe={"steps": steps, "lr": 1e-4})
    request(workspace, mem_mb=2000, runtime=minutes)
    unfinished = workspace.folder / "results/tiny/olmo/rows/.add.unfinished"
    log = workspace.folder / "results/tiny/logs/measure_row/olmo/add.log"

    def preempt():
        cluster.wait(lambda: cluster.queued("RUNNING"), 60)
        job = cluster.queued("RUNNING")[0]
        # Only a training that has begun leaves a checkpoint as it stops.
        cluster.wait(lambda: log.exists() and f"/{steps} steps" in log.read_text(), 60 * minutes)
        cluster.run("scontrol", "requeue", job)
        cluster.wait(lambda: job in cluster.queued("PENDING"), 60)
        assert (unfinished / "training.safetensors").exists()
        cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    comparison = subprocess.Popen(
        alone.command("--nocolor", ROW), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        output, jobs = run_on(workspace, preempt, ROW, seconds=600)
        assert comparison.wait(timeout=600) == 0
    finally:
        comparison.kill()
    assert losses(workspace.folder / ROW) == losses(alone.folder / ROW)
    assert not unfinished.exists()
    if len(jobs) == 1 and jobs[0]["JobState"] == "COMPLETED":
        pytest.skip("the row was done before its time was over: this machine has become faster")
    limits = [f"00:{minutes * attempt:02}:00" for attempt in (1, 2, 3)]
    assert [job["TimeLimit"] for job in jobs] in (limits[:2], limits), output
    assert jobs[0]["JobState"] == "TIMEOUT" and int(jobs[0]["Restarts"]) == 1


def test_an_outdated_row_whose_job_never_starts_stays_outdated(workspace, cluster, tmp_path):
    """With keep-incomplete, Snakemake by itself would record it with the new recipe."""
    workspace.change(recipe={"steps": 13})
    request(workspace, together=1)
    refusing = tmp_path / "bin/sbatch"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    refusing.chmod(0o755)
    path = f"{refusing.parent}:{cluster.environment['PATH']}"
    process = subprocess.run(
        workspace.command(*CLUSTER, ROW, ROW.replace("olmo", "pythia"), "--retries", "0"),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 120},
        env=cluster.environment | {"PATH": path, "LETHE_CACHE": str(tmp_path / "cache")},
    )
    assert process.returncode == 1, process.stdout
    assert "Error in group pythia-rows" in process.stdout
    assert workspace.planned()["measure_row"] == len(MODELS) * len(TASKS)


def test_more_rows_than_may_be_queued_are_made_each_with_what_its_model_asks_for(workspace, run_on):
    """Jobs of both models are ready at once; only some fit under --jobs, and two in an array."""
    request(workspace, gpu=1, mem_mb=1600, runtime=5, together=1)
    request(workspace, "pythia", together=1)
    files = [f"results/tiny/{model}/rows/{task}.parquet" for model in MODELS for task in TASKS]
    limits = ("--jobs", "4", "--slurm-array-limit", "2")
    _, jobs = run_on(workspace, lambda: None, *files, *limits)
    assert len(workspace.rows()) == 8
    rows_of = [job for job in jobs if job["Comment"].startswith("rule_measure_row")]
    resources = sorted((job["JOB_GRES"], int(job["MinMemoryNode"][:4]) // 10) for job in rows_of)
    assert resources == [("(null)", 200)] * 3 + [("gpu:1", 160)] * 3
    submissions = Counter(job.get("ArrayJobId", job["JobId"]) for job in rows_of)
    assert max(submissions.values()) == 2


def test_of_rows_that_are_one_job_those_that_fail_are_tried_again_and_no_other(workspace, run_on):
    """One has a broken file. The others are made in the first try, in any order."""
    files = [f"results/tiny/pythia/rows/{task}.parquet" for task in TASKS]
    bad, *good = (workspace.folder / file for file in files)
    bad.unlink()
    broken = workspace.folder / "results/tiny/tasks/add/train.parquet"
    content = broken.read_bytes()
    broken.write_bytes(content[:-100])
    finished = {}

    def see():
        until = time.monotonic() + 240
        while not all(path.is_file() for path in good) and time.monotonic() < until:
            time.sleep(0.1)
        finished.update({path: path.read_bytes() for path in good})

    output, jobs = run_on(workspace, see, *files, status=1, seconds=480)
    assert len(jobs) == 3 and {job["JobState"] for job in jobs} == {"FAILED"}, output
    assert "add/train.parquet" in output
    # Half an hour a row and try, of the rows that are left.
    assert [job["TimeLimit"] for job in jobs] == ["02:00:00", "01:00:00", "01:30:00"]
    assert len(finished) == 3 and {path: path.read_bytes() for path in good} == finished
    assert not bad.exists()
    broken.write_bytes(content)
    _, jobs = run_on(workspace, lambda: None, *files)
    assert len(jobs) == 1
    assert bad.is_file() and {path: path.read_bytes() for path in good} == finished


def test_of_rows_that_are_one_job_what_is_made_survives_its_preemption(workspace, cluster, run_on):
    """The existing row is outdated and is made again like the others."""
    workspace.change(recipe={"steps": 400})
    files = [f"results/tiny/pythia/rows/{task}.parquet" for task in TASKS]
    outdated = set(workspace.rows())
    finished = {}

    def preempt():
        cluster.wait(lambda: cluster.queued("RUNNING"), 60)
        job = cluster.queued("RUNNING")[0]
        cluster.wait(lambda: any(path not in outdated for path in workspace.rows()), 120)
        cluster.run("scontrol", "requeue", job)
        cluster.wait(lambda: job in cluster.queued("PENDING"), 60)
        finished.update(
            {path: data for path, data in workspace.rows().items() if path not in outdated}
        )
        cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    _, [job] = run_on(workspace, preempt, *files)
    assert int(job["Restarts"]) == 1 and 0 < len(finished) < 4
    after = workspace.rows()
    assert {path: after[path] for path in finished} == finished
    assert all(rows.read_row(workspace.folder / file).about["steps"] == 400 for file in files)
