"""What clusters do to a job: too little memory, too little time, preemption; nothing is lost."""

import shutil
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
import yaml
from helpers.experiment import Place, make_experiment
from helpers.slurm import CLUSTER

from lethe.matrix import rows

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]
MODELS, TASKS = ("olmo", "pythia"), ("add", "double", "upper", "reverse")
ROW = "results/tiny/olmo/rows/add.parquet"
# Of training, where SLURM, which looks every half minute, ends a job of one minute by 90.
SECONDS = 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Place:
    """Base models and their losses, made on this machine; one row of each model."""
    folder = tmp_path_factory.mktemp("faults") / "place"
    make_experiment(folder)
    made = Place(folder)
    tasks = [f"results/tiny/tasks/{task}/train.parquet" for task in TASKS]
    made.run("--nocolor", ROW, ROW.replace("olmo", "pythia"), *tasks)
    return made


@pytest.fixture
def place(trained, cluster, tmp_path) -> Place:
    """A copy of it for the cluster."""
    shutil.copytree(trained.folder, tmp_path / "place", symlinks=True)
    return Place(tmp_path / "place", profile="profiles/slurm", environment=cluster.environment)


@pytest.fixture
def run_on(cluster):
    """Starts Snakemake in a place while a fault is done to it; what it said, and its jobs."""

    def run(place, fault=lambda: None, *arguments, seconds=300, status=0):
        earlier = {job["JobId"] for job in cluster.jobs()}
        with (place.folder / "said.txt").open("w+") as said:
            process = subprocess.Popen(
                place.command(*CLUSTER, *arguments),
                **{"stdout": said, "stderr": subprocess.STDOUT},
                env=cluster.environment | {"LETHE_CACHE": str(place.folder / "cache")},
            )
            try:
                fault()
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
            said.seek(0)
            told = said.read()
        assert code == status, told
        return told, [job for job in cluster.jobs() if job["JobId"] not in earlier]

    return run


def asking(place, model="olmo", **resources):
    models = yaml.safe_load((place.folder / "tiny.yaml").read_text())["models"]
    models[model]["resources"] = resources
    place.change(models=models)


def losses(path) -> bytes:
    return rows.read(path).loss_after.tobytes()


def test_a_row_out_of_memory_is_tried_again_with_more(place, run_on):
    """SLURM kills it: importing torch alone takes more than it asked for at first."""
    path = place.folder / ROW
    wanted, others = losses(path), {k: v for k, v in place.rows().items() if k != path}
    path.unlink()
    asking(place, mem_mb=250, runtime=10)
    said, jobs = run_on(place, lambda: None, ROW)
    asked = [int(job["MinMemoryNode"].removesuffix("M")) for job in jobs]
    assert asked in ([250, 500], [250, 500, 750]), said
    assert {job["JobState"] for job in jobs[:-1]} <= {"OUT_OF_MEMORY", "CANCELLED", "FAILED"}
    assert jobs[-1]["JobState"] == "COMPLETED"
    # A third try takes smaller batches: the same up to rounding.
    off = np.frombuffer(losses(path), np.float32) - np.frombuffer(wanted, np.float32)
    assert abs(off).max() <= (1e-4 if len(asked) == 3 else 0)
    assert {k: v for k, v in place.rows().items() if k != path} == others


def test_preempted_and_then_over_its_time_a_row_goes_on_from_where_it_was(place, cluster, run_on):
    """It ends with the bytes of a row that nobody stopped, which this machine makes meanwhile."""
    alone = Place(place.folder.with_name("alone"))
    shutil.copytree(place.folder, alone.folder, symlinks=True)
    # So many steps that two minutes are not enough for start, requeue and the minute that is
    # given: the rate of a few steps would hold their start, too.
    alone.change(recipe={"steps": 1000, "lr": 1e-4})
    alone.run("--nocolor", ROW)
    about = rows.read(alone.folder / ROW).about
    steps = int(SECONDS * about["steps"] / about["training_seconds"])
    for of in (place, alone):
        of.change(recipe={"steps": steps, "lr": 1e-4})
    asking(place, mem_mb=2000, runtime=1)
    kept = place.folder / "results/tiny/olmo/rows/.add.unfinished/training.safetensors"
    marks = []

    def preempt():
        cluster.wait(lambda: cluster.queued("RUNNING"), 60)
        job = cluster.queued("RUNNING")[0]
        time.sleep(20)
        cluster.say("scontrol", "requeue", job)
        cluster.wait(lambda: job in cluster.queued("PENDING"), 60)
        marks.append(kept.stat().st_mtime_ns)
        cluster.say("scontrol", "update", f"JobId={job}", "StartTime=now")

    said, jobs = run_on(place, preempt, ROW, seconds=600)
    assert kept.parent.exists() is False
    if len(jobs) == 1 and jobs[0]["JobState"] == "COMPLETED":
        pytest.skip("the row was done before its minute was over: this machine has become faster")
    limits = ["00:01:00", "00:02:00", "00:03:00"]
    assert [job["TimeLimit"] for job in jobs] in (limits[:2], limits), said
    assert jobs[0]["JobState"] == "TIMEOUT" and int(jobs[0]["Restarts"]) == 1
    alone.run("--nocolor", ROW)
    assert losses(place.folder / ROW) == losses(alone.folder / ROW)


def test_an_outdated_row_whose_job_never_starts_is_not_taken_for_current(place, cluster, tmp_path):
    """Snakemake, told to keep what is incomplete, would record it as made with the new recipe."""
    place.change(recipe={"steps": 13})
    asking(place, together=1)
    refusing = tmp_path / "bin/sbatch"
    refusing.parent.mkdir()
    refusing.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    refusing.chmod(0o755)
    path = f"{refusing.parent}:{cluster.environment['PATH']}"
    done = subprocess.run(
        place.command(*CLUSTER, ROW, ROW.replace("olmo", "pythia"), "--retries", "0"),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 120},
        env=cluster.environment | {"PATH": path, "LETHE_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 1 and "Error in group pythia-rows" in done.stdout, done.stdout
    assert place.planned()["measure_row"] == len(MODELS) * len(TASKS)


def test_more_rows_than_may_be_queued_are_made_each_with_what_its_model_asks_for(place, run_on):
    """Jobs of both models are ready at once; only some fit under --jobs, and two in an array."""
    asking(place, gpu=1, mem_mb=1600, runtime=5, together=1)
    asking(place, "pythia", together=1)
    files = [f"results/tiny/{model}/rows/{task}.parquet" for model in MODELS for task in TASKS]
    limits = ("--jobs", "4", "--slurm-array-limit", "2")
    _, jobs = run_on(place, lambda: None, *files, *limits, seconds=120)
    assert len(place.rows()) == 8
    rows_of = [job for job in jobs if job["Comment"].startswith("rule_measure_row")]
    asked = sorted((job["JOB_GRES"], int(job["MinMemoryNode"][:4]) // 10) for job in rows_of)
    assert asked == [("(null)", 200)] * 3 + [("gpu:1", 160)] * 3
    submissions = Counter(job.get("ArrayJobId", job["JobId"]) for job in rows_of)
    assert max(submissions.values()) == 2


def test_of_rows_that_are_one_job_those_that_fail_are_tried_again_and_no_other(place, run_on):
    """One has a broken file. The others are made in the first try, whichever comes first."""
    files = [f"results/tiny/pythia/rows/{task}.parquet" for task in TASKS]
    bad, *good = (place.folder / file for file in files)
    bad.unlink()
    broken = place.folder / "results/tiny/tasks/add/train.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    made = {}

    def see():
        until = time.monotonic() + 240
        while not all(path.is_file() for path in good) and time.monotonic() < until:
            time.sleep(0.1)
        made.update({path: path.read_bytes() for path in good})

    said, jobs = run_on(place, see, *files, status=1, seconds=480)
    assert len(jobs) == 3 and {job["JobState"] for job in jobs} == {"FAILED"}, said
    assert "add/train.parquet" in said
    # Half an hour a row and try, of the rows that are left.
    assert [job["TimeLimit"] for job in jobs] == ["02:00:00", "01:00:00", "01:30:00"]
    assert len(made) == 3 and {path: path.read_bytes() for path in good} == made
    assert not bad.exists()
    broken.write_bytes(whole)
    _, jobs = run_on(place, lambda: None, *files)
    assert len(jobs) == 1
    assert bad.is_file() and {path: path.read_bytes() for path in good} == made


def test_of_rows_that_are_one_job_what_is_made_survives_its_preemption(place, cluster, run_on):
    """The row that is there is outdated, and made again like the others."""
    place.change(recipe={"steps": 400})
    files = [f"results/tiny/pythia/rows/{task}.parquet" for task in TASKS]
    stale, made = {path: path.read_bytes() for path in place.rows()}, {}

    def preempt():
        cluster.wait(lambda: cluster.queued("RUNNING"), 60)
        job = cluster.queued("RUNNING")[0]
        cluster.wait(lambda: any(path not in stale for path in place.rows()), 120)
        cluster.say("scontrol", "requeue", job)
        cluster.wait(lambda: job in cluster.queued("PENDING"), 60)
        made.update({path: data for path, data in place.rows().items() if path not in stale})
        cluster.say("scontrol", "update", f"JobId={job}", "StartTime=now")

    _, [job] = run_on(place, preempt, *files)
    assert int(job["Restarts"]) == 1 and 0 < len(made) < 4
    after = place.rows()
    assert {path: after[path] for path in made} == made
    assert all(rows.read(place.folder / file).about["steps"] == 400 for file in files)
