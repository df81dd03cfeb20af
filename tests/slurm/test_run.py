"""The tiny experiment through profiles/slurm on a real SLURM."""

import itertools

import pytest
import yaml
from helpers.experiment import Workspace, make_experiment
from helpers.slurm import CLUSTER

from lethe.matrix import rows

pytestmark = pytest.mark.slurm
RESOURCES = {"gpu": 1, "mem_mb": 1500, "runtime": 7, "slurm_partition": "gpu", "together": 1}


@pytest.fixture(scope="module")
def workspace(cluster, tmp_path_factory) -> Workspace:
    """The tiny experiment, made by the cluster; the jobs of one model need a GPU."""
    folder = tmp_path_factory.mktemp("tiny") / "workspace"
    make_experiment(folder)
    created = Workspace(folder, profile="profiles/slurm", environment=cluster.environment)
    models = yaml.safe_load((folder / "tiny.yaml").read_text())["models"]
    models["olmo"]["resources"] = RESOURCES
    created.change(models=models)
    created.run(*CLUSTER)
    return created


@pytest.fixture(scope="module")
def jobs(workspace, cluster) -> dict[str, list[dict]]:
    """Rule and model -> its jobs, as the controller remembers them."""
    by_rule: dict[str, list[dict]] = {}
    for job in cluster.jobs():
        rule, _, wildcards = job["Comment"].removeprefix("rule_").partition("_wildcards_")
        by_rule.setdefault(f"{rule} {wildcards.split('_')[0]}".strip(), []).append(job)
    return by_rule


def test_the_whole_graph_is_made(workspace):
    assert (workspace.results / "report.html").is_file()
    assert len(workspace.rows()) == 8
    assert workspace.planned() == {}


def test_jobs_of_a_model_get_the_gpu_memory_time_and_partition_it_asks_for(jobs):
    rows = jobs["measure_row olmo"]
    assert len(rows) == 4
    for job in rows + jobs["pretrain_model olmo"] + jobs["score_base olmo"]:
        assert (job["Partition"], job["TimeLimit"]) == ("gpu", "00:07:00")
        assert job["JOB_GRES"] == "gpu:1"
        # The executor adds a megabyte to array jobs, for what it carries itself.
        assert job["MinMemoryNode"] in ("1500M", "1501M")


def test_jobs_of_others_get_no_gpu_and_the_defaults(jobs):
    for job in jobs["score_base pythia"] + jobs["prepare_task add"]:
        assert (job["Partition"], job["JOB_GRES"]) == ("main", "(null)")


def test_rows_of_a_model_are_one_array(jobs):
    rows = jobs["measure_row olmo"]
    assert len({job["ArrayJobId"] for job in rows}) == 1
    assert len({job["ArrayTaskId"] for job in rows}) == 4


def test_rows_of_a_small_model_are_one_job_which_takes_turns(workspace, jobs):
    """It asks for the time of all of them and for the memory of one."""
    [measured] = jobs["pythia-rows_measure_row"]
    assert measured["TimeLimit"] == "02:00:00"
    # Replay runs of a strategy: of one task and seed there is one.
    replayed = [job for name in jobs if name.startswith("pythia-replay-") for job in jobs[name]]
    assert [job["TimeLimit"] for job in replayed] == ["00:30:00"] * 4
    assert (measured["MinMemoryNode"], measured["NumCPUs"]) == ("2000M", "1")
    assert measured["JOB_GRES"] == "(null)"
    logs = (workspace.results / "logs/measure_row/pythia").glob("*.log")
    ended = {log.stem: log.stat().st_mtime for log in logs}
    assert len(ended) == 4
    for before, task in itertools.pairwise(sorted(ended, key=ended.get)):
        about = rows.read_row(workspace.results / f"pythia/rows/{task}.parquet").about
        assert ended[task] - ended[before] > about["training_seconds"] + about["scoring_seconds"]


def test_a_job_sees_the_gpu_it_was_given_and_no_other(workspace, cluster, jobs):
    held = {job: gpu for job, gpu, *_ in cluster.gpu_times()}
    expected = sorted(held[job["JobId"]] for job in jobs["measure_row olmo"])
    logs = (workspace.results / "logs/measure_row/olmo").glob("*.log")
    reported = [line for log in logs for line in log.read_text().splitlines() if "GPU" in line]
    # SLURM numbers a job's devices from 0 only where cgroups hide the others; here it does not.
    assert sorted(line.rsplit(" ", 1)[1] for line in reported) == expected


def test_no_two_jobs_share_a_gpu(cluster, workspace):
    held = cluster.gpu_times()
    assert len(held) >= 8
    for (job, gpu, began, ended), (other, same, start, end) in itertools.combinations(held, 2):
        assert gpu != same or ended <= start or end <= began, f"{job} and {other} shared {gpu}"
