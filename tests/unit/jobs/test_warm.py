"""Jobs forked from a warm server behave as jobs in their own process do."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lethe.jobs import warm

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from lethe.jobs import running, warm
from lethe.errors import LetheError

def work(out: Path, what: str, inputs: dict, numbers: list) -> None:
    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        out.write_text("stopped")
        raise SystemExit(7)

    signal.signal(signal.SIGTERM, stop)
    if what == "fail":
        raise LetheError("tasks.csv: line 3 is wrong")
    if what == "break":
        raise ZeroDivisionError("one by nothing")
    if what == "wait":
        with out.with_suffix(".began").open("a") as began:
            began.write(f"{os.getpid()}\\n")
        time.sleep(float(os.environ.get("SECONDS", "30")))
    print("a message", file=sys.stderr)
    report = {"parent": os.getppid(), "folder": os.getcwd(), "mark": os.environ.get("MARK")}
    out.write_text(json.dumps(report | {"inputs": inputs, "numbers": numbers}))

if __name__ == "__main__":
    warm.PRELOADED, warm._SECONDS_TO_LISTEN = (), 60.0
    out, what = Path(sys.argv[1]), sys.argv[2]
    arguments = {"inputs": {"card": "a.json", "train": ["b", "c"]}, "numbers": (1, 2.5)}
    log = str(out.with_suffix(".log"))
    running.run(work, log, warm_start=True, out=out, what=what, **arguments)
"""


@pytest.fixture
def owner():
    """The process that a run's server lives as long as."""
    process = subprocess.Popen(["sleep", "120"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def temporary(monkeypatch):
    """A folder for servers; the path of a socket in it must not have more than 107 characters."""
    with tempfile.TemporaryDirectory(
        prefix="warm-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def start(tmp_path, owner, temporary):
    """Starts a job; `owner` is the Snakemake of the run."""
    script = tmp_path / "job.py"
    script.write_text(SCRIPT, encoding="utf-8")
    library = str(Path(__file__).parents[3] / "src")

    def begin(name: str, what: str = "work", **environment: str) -> subprocess.Popen:
        variables = {"PYTHONPATH": library, "LETHE_WARM": str(owner.pid), **environment}
        return subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / f"{name}.json"), what],
            env=os.environ | variables,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def read_report(tmp_path: Path, name: str) -> dict:
    return json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def fork_and_server(began: Path) -> tuple[int, int]:
    """Numbers of a job's fork and of its server, once the fork works."""
    wait_for(began.exists)
    wait_for(lambda: began.read_text().endswith("\n"))
    fork = int(began.read_text())
    stat = Path(f"/proc/{fork}/stat").read_text()
    server = int(stat.rpartition(")")[2].split()[1])
    assert server != os.getpid(), "the job did not start warm"
    return fork, server


def handles_sigterm(process: int) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    handled = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(handled.split()[1], 16) >> signal.SIGTERM - 1 & 1)


SCRIPTS = Path(__file__).parents[3] / "workflow_scripts"
WARM = [path.stem for path in SCRIPTS.glob("*.py") if "warm_start=True" in path.read_text("utf-8")]


@pytest.mark.parametrize("script", sorted(WARM))
def test_a_job_that_starts_warm_does_not_import_torch_itself(script):
    """Snakemake runs the script in a process of its own, which only hands the job to a fork."""
    check = f"import sys, {script}; sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", check]
    process = subprocess.run(command, cwd=SCRIPTS, check=False, timeout=120)
    assert process.returncode == 0


def test_jobs_of_a_run_share_a_parent_and_keep_their_own_surroundings(start, tmp_path):
    jobs = [start("a", MARK="first"), start("b", MARK="second")]
    outputs = [job.communicate(timeout=60)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    a, b = read_report(tmp_path, "a"), read_report(tmp_path, "b")
    assert a["parent"] == b["parent"] not in [job.pid for job in jobs]
    assert (a["mark"], b["mark"], a["folder"]) == ("first", "second", str(tmp_path))
    assert a["inputs"] == {"card": "a.json", "train": ["b", "c"]} and a["numbers"] == [1, 2.5]
    assert all("a message" in text for text in outputs)
    assert "a message" in (tmp_path / "b.log").read_text(encoding="utf-8")


def test_without_a_run_a_job_is_its_own_process(start, tmp_path):
    job = start("cold", LETHE_WARM="0")
    job.communicate(timeout=60)
    assert job.returncode == 0 and read_report(tmp_path, "cold")["parent"] == os.getpid()


@pytest.mark.parametrize(
    ("what", "message"),
    [("fail", "error: tasks.csv: line 3 is wrong"), ("break", "one by nothing")],
)
def test_what_fails_in_the_fork_is_reported_and_fails_the_job(start, what, message):
    job = start("broken", what)
    text = job.communicate(timeout=60)[1]
    assert job.returncode == 1 and message in text


def test_a_job_that_is_killed_takes_its_fork_with_it(start, tmp_path):
    job = start("lost", "wait")
    fork, _ = fork_and_server(tmp_path / "lost.began")
    assert not gone(fork)
    job.kill()
    job.wait(timeout=20)
    wait_for(lambda: gone(fork))


def test_a_request_to_stop_reaches_the_fork_and_its_status_comes_back(start, tmp_path):
    job = start("stopped", "wait")
    wait_for((tmp_path / "stopped.began").exists)
    wait_for(lambda: handles_sigterm(job.pid))
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=20)
    assert job.returncode == 7
    assert (tmp_path / "stopped.json").read_text() == "stopped"


def test_where_all_processes_are_asked_to_stop_the_job_is_not_begun_again(start, tmp_path):
    """As clusters do: the job, the server and the fork."""
    job = start("stopped", "wait")
    began = tmp_path / "stopped.began"
    fork, server = fork_and_server(began)
    wait_for(lambda: handles_sigterm(job.pid))
    for process in (server, fork, job.pid):
        os.kill(process, signal.SIGTERM)
    job.communicate(timeout=20)
    assert job.returncode == 7
    assert began.read_text() == f"{fork}\n"
    os.kill(server, signal.SIGKILL)


def test_a_job_whose_server_is_lost_meanwhile_fails_and_is_not_begun_again(start, tmp_path):
    job = start("orphan", "wait")
    began = tmp_path / "orphan.began"
    fork, server = fork_and_server(began)
    os.kill(server, signal.SIGKILL)
    os.kill(fork, signal.SIGKILL)
    job.communicate(timeout=20)
    assert job.returncode not in (0, None) and began.read_text() == f"{fork}\n"


def test_a_fork_whose_server_dies_finishes_and_its_result_counts(start, tmp_path):
    job = start("kept", "wait", SECONDS="3")
    fork, server = fork_and_server(tmp_path / "kept.began")
    os.kill(server, signal.SIGKILL)
    assert job.wait(timeout=30) == 0
    assert read_report(tmp_path, "kept")["inputs"]["card"] == "a.json"
    assert (tmp_path / "kept.began").read_text() == f"{fork}\n"
    wait_for(lambda: gone(fork))


def test_a_job_that_is_killed_says_that_memory_may_have_run_out(start, tmp_path):
    job = start("killed", "wait")
    fork, server = fork_and_server(tmp_path / "killed.began")
    os.kill(fork, signal.SIGKILL)
    _, error = job.communicate(timeout=20)
    assert job.returncode == 1
    for said in (error, (tmp_path / "killed.log").read_text()):
        assert "killed by SIGKILL, probably because memory ran out" in said
    os.kill(server, signal.SIGKILL)


def test_a_fork_whose_server_died_still_gets_the_signals_of_its_job(start, tmp_path):
    job = start("stopped", "wait")
    fork, server = fork_and_server(tmp_path / "stopped.began")
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: gone(server))
    wait_for(lambda: handles_sigterm(job.pid))
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 7
    assert (tmp_path / "stopped.json").read_text() == "stopped"


def test_no_fork_outlives_both_its_server_and_its_job(start, tmp_path):
    job = start("lost", "wait")
    fork, server = fork_and_server(tmp_path / "lost.began")
    os.kill(server, signal.SIGKILL)
    job.kill()
    job.wait(timeout=20)
    wait_for(lambda: gone(fork))


def test_a_fork_that_is_killed_fails_its_job_by_name_and_the_next_goes_on(start, tmp_path):
    job = start("killed", "wait")
    fork, _ = fork_and_server(tmp_path / "killed.began")
    os.kill(fork, signal.SIGKILL)
    assert "SIGKILL" in job.communicate(timeout=20)[1]
    assert job.returncode != 0
    assert start("next").wait(timeout=60) == 0


def test_a_server_ends_with_the_process_that_is_named_if_it_is_above_this_one(owner, monkeypatch):
    """A script that starts many runs can have one server for all."""
    for named, expected in (
        (os.getppid(), os.getppid()),
        # A number that came with the environment from another machine.
        (owner.pid, os.getpid()),
        ("", os.getpid()),
    ):
        monkeypatch.setenv("LETHE_WARM", str(named))
        assert warm.server_owner() == expected


def test_a_server_that_died_is_replaced_and_one_without_a_run_ends(
    start, tmp_path, owner, temporary
):
    assert start("a").wait(timeout=60) == 0
    first = read_report(tmp_path, "a")["parent"]
    assert first != os.getpid(), "the job did not start warm"
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: gone(first))
    assert start("b").wait(timeout=60) == 0
    second = read_report(tmp_path, "b")["parent"]
    assert second != first
    owner.kill()
    owner.wait()
    wait_for(lambda: gone(second))
    assert not list(temporary.glob("lethe-*"))


def test_a_folder_that_others_may_open_is_not_trusted(start, tmp_path, temporary):
    assert start("a").wait(timeout=60) == 0
    (folder,) = temporary.glob("lethe-*")
    folder.chmod(0o755)
    job = start("b")
    assert job.wait(timeout=60) == 0
    assert read_report(tmp_path, "b")["parent"] == os.getpid()
