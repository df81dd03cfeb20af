"""Whose job and whose lock it is, and whether that process is gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lethe.errors import LetheError
from lethe.jobs import owner
from lethe.jobs.owner import Owner

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.fixture
def process():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def sign(lock, identity: Owner) -> None:
    lock.parent.mkdir(exist_ok=True)
    lock.write_text("results/a.parquet\n")
    lock.with_name(f"{lock.name}.owner").write_text(json.dumps(asdict(identity)))


def test_a_process_is_gone_when_it_has_ended(process):
    identity = Owner.of_process(process.pid)
    assert not identity.is_gone()
    process.kill()
    # Its number is not free yet, because nobody has read its status.
    deadline = time.monotonic() + 10
    while not identity.is_gone():
        assert time.monotonic() < deadline
    process.wait()
    assert identity.is_gone()


def test_a_number_that_was_given_to_another_process_is_not_the_owner(process):
    assert replace(Owner.of_process(process.pid), start="1").is_gone()


@pytest.mark.parametrize("key", ["host", "machine", "namespace"])
def test_nothing_is_known_about_processes_of_other_hosts_and_containers(process, key):
    identity = replace(Owner.of_process(process.pid), start="1")
    assert identity.is_gone() and not replace(identity, **{key: "other"}).is_gone()


def test_no_process_survives_a_restart(process):
    identity = Owner.of_process(process.pid)
    restarted = replace(identity, boot="before the power cut")
    assert restarted.is_gone() == bool(identity.machine)


def test_the_lock_of_a_dead_process_is_removed_and_that_of_a_living_one_stays(
    process, tmp_path, monkeypatch
):
    monkeypatch.setattr(owner, "_LOCAL", {*owner._LOCAL, "overlay"})
    locks = tmp_path / "locks"
    living = Owner.of_process(process.pid)
    sign(locks / "0.input.lock", living)
    sign(locks / "1.output.lock", replace(living, start="1"))
    (locks / "2.output.lock").write_text("not signed")
    assert owner.remove_dead_locks(locks) == [process.pid]
    assert sorted(path.name for path in locks.iterdir()) == [
        *("0.input.lock", "0.input.lock.owner", "2.output.lock"),
    ]


def test_on_shared_storage_no_lock_is_removed(process, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "is_local", lambda path: False)
    sign(tmp_path / "locks/0.input.lock", replace(Owner.of_process(process.pid), start="1"))
    assert owner.remove_dead_locks(tmp_path / "locks") == []
    assert (tmp_path / "locks/0.input.lock").exists()


@pytest.mark.parametrize(("kind", "local"), [("ext4", True), ("nfs4", False), ("lustre", False)])
def test_only_disks_of_one_machine_are_local(tmp_path, monkeypatch, kind, local):
    mounts = f"1 0 8:1 / / rw - xfs /dev/a rw\n2 1 0:5 / {tmp_path} rw - {kind} server:/x rw\n"
    monkeypatch.setattr(owner, "_content", lambda path: mounts)
    assert owner.is_local(tmp_path / "locks") == local


def test_a_lock_waits_for_the_jobs_of_its_dead_process(tmp_path, monkeypatch):
    """They may still write files; if they do not end, they are named."""
    dead = replace(Owner.of_process(os.getpid()), number=4_000_000, start="7")
    sign(tmp_path / "locks/0.input.lock", dead)
    environment = os.environ | {owner.VARIABLE: dead.variable()}
    job = subprocess.Popen(["sleep", "60"], env=environment)
    monkeypatch.setattr(owner, "_SECONDS_FOR_JOBS_TO_END", 0.1)
    try:
        with pytest.raises(LetheError, match=f"jobs do not end: processes .*{job.pid}"):
            owner.remove_dead_locks(tmp_path / "locks")
        assert (tmp_path / "locks/0.input.lock").exists()
    finally:
        job.kill()
        job.wait()
    assert owner.remove_dead_locks(tmp_path / "locks") == [4_000_000]


def test_a_job_ends_when_its_owner_is_gone(process):
    code = "import time; from lethe.jobs.owner import watch_owner; watch_owner(); time.sleep(60)"
    library = str(Path(__file__).parents[3] / "src")
    variables = {"PYTHONPATH": library, owner.VARIABLE: Owner.of_process(process.pid).variable()}
    environment = os.environ | variables
    job = subprocess.Popen([sys.executable, "-c", code], env=environment)
    time.sleep(1.5)
    assert job.poll() is None
    process.kill()
    process.wait()
    assert job.wait(timeout=20) == -signal.SIGTERM


def test_snakemake_ends_when_the_command_that_runs_it_is_gone(process):
    """Also if it handles SIGTERM, as Snakemake does, by waiting for its jobs."""
    code = (
        "import os, signal, time; from lethe.jobs.owner import watch_command; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); watch_command(); "
        "assert 'LETHE_COMMAND' not in os.environ; time.sleep(60)"
    )
    library = str(Path(__file__).parents[3] / "src")
    variables = {"PYTHONPATH": library, owner.COMMAND: Owner.of_process(process.pid).variable()}
    snakemake = subprocess.Popen([sys.executable, "-c", code], env=os.environ | variables)
    time.sleep(1.5)
    assert snakemake.poll() is None
    process.kill()
    process.wait()
    assert snakemake.wait(timeout=20) == -signal.SIGKILL


def test_a_handler_may_wait_for_a_lock_that_the_interrupted_thread_holds():
    lock, handled = threading.Lock(), threading.Event()

    def handler(*_):
        with lock:
            handled.set()

    earlier = signal.signal(signal.SIGUSR1, owner.in_a_thread(handler))
    try:
        with lock:
            # With the plain handler this thread would wait for itself here.
            signal.raise_signal(signal.SIGUSR1)
            assert not handled.is_set()
        assert handled.wait(60)
    finally:
        signal.signal(signal.SIGUSR1, earlier)
