"""Kills parts of a tiny run at random, and compares its losses with those measured undisturbed.

`python tests/helpers/soak.py 30` kills 30 times. Each kill takes one process (the workflow, a job,
the warm server or a fork) and one signal (SIGKILL, SIGTERM or SIGINT). After each, the run is only
started again. When a run ends before all kills are used, its losses are compared, its rows and base
losses are deleted, and it goes on.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.experiment import Workspace, make_experiment
from lethe.matrix import rows

VICTIMS = ("workflow", "job", "server", "fork")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
SECONDS_TO_FIND = 90.0
# Analyses of Z start no server and no fork, and would only make the soak longer.
TARGET = "results/tiny/olmo/Z.parquet"


def make_workspace(folder: Path) -> Workspace:
    """The tiny experiment with one model and without replay, which saves its state often."""
    make_experiment(folder)
    # Each run has a server of its own, which can be killed.
    environment = {"LETHE_CHECKPOINT_MINUTES": "0.005", "LETHE_WARM": ""}
    workspace = Workspace(folder, environment=environment)
    with workspace.edit() as config:
        del config["models"]["pythia"], config["replay"]
    return workspace


def losses(workspace: Workspace) -> dict[str, np.ndarray]:
    """File -> the losses in it, of the base model and of every row."""
    files = [*workspace.results.glob("*/rows/*.parquet"), *workspace.results.glob("*/base.parquet")]
    return {
        str(path.relative_to(workspace.results)): rows.read_row(path).loss_after for path in files
    }


@dataclass
class Soak:
    """One soak: what was killed, and how often a person would have had to step in."""

    workspace: Workspace
    expected: dict[str, np.ndarray]
    rng: random.Random
    kills: Counter = field(default_factory=Counter)
    starts: int = 0
    manual_steps: int = 0
    rounds: int = 0

    def run(self, count: int) -> None:
        """Kills `count` times, then lets the run finish and compares its losses."""
        while sum(self.kills.values()) < count:
            assert self.starts < 10 * count, "the processes to kill are not found"
            if self._run_and_kill(count):
                self.compare()
                self.delete_measurements()
        for _ in range(3):
            if self._start().wait(timeout=900) == 0:
                self.compare()
                return
        raise AssertionError(f"the run does not finish: {self._log().read_text()[-4000:]}")

    def compare(self) -> None:
        """Fails if a loss differs from that of the quiet run."""
        self.rounds += 1
        print(f"compare {self.rounds}", flush=True)
        measured = losses(self.workspace)
        assert measured.keys() == self.expected.keys()
        for name, values in self.expected.items():
            np.testing.assert_array_equal(measured[name], values, err_msg=name)

    def _log(self) -> Path:
        return self.workspace.folder / "soak.log"

    def _start(self) -> subprocess.Popen:
        """Starts the run; if it is locked, this is the manual step that nobody should need."""
        log = self._log()
        if log.exists() and "Directory cannot be locked" in log.read_text("utf-8", "replace"):
            self.manual_steps += 1
            self.workspace.run("--unlock")
        self.starts += 1
        environment = {"LETHE_CACHE": str(self.workspace.folder / "cache")}
        with log.open("wb") as stream:
            return subprocess.Popen(
                self.workspace.command("--nocolor", "--", TARGET),
                env=os.environ | environment | self.workspace.environment,
                stdout=stream,
                stderr=stream,
                # As in a terminal: Ctrl-C reaches the workflow and its jobs.
                start_new_session=True,
            )

    def _run_and_kill(self, count: int) -> bool:
        """Starts the run and kills until it ends; True if it ended well."""
        workflow = self._start()
        while sum(self.kills.values()) < count and workflow.poll() is None:
            victim = self.rng.choice(VICTIMS)
            number = self._wait_for(victim, workflow)
            time.sleep(self.rng.uniform(0, 2))
            if number is not None and workflow.poll() is None and self._kill(victim, number):
                time.sleep(self.rng.uniform(0, 1))
            if victim == "workflow":
                break
        return workflow.wait(timeout=900) == 0

    def _kill(self, victim: str, number: int) -> bool:
        kind = self.rng.choice(SIGNALS)
        try:
            if victim == "workflow" and kind == signal.SIGINT:
                os.killpg(number, kind)
            else:
                os.kill(number, kind)
        except ProcessLookupError:
            return False
        self.kills[f"{victim} {kind.name}"] += 1
        print(f"kill {sum(self.kills.values())}: {victim} {kind.name}", flush=True)
        return True

    def _wait_for(self, victim: str, workflow: subprocess.Popen) -> int | None:
        """The number of a process of this kind, once there is one."""
        end = time.monotonic() + SECONDS_TO_FIND
        while time.monotonic() < end and workflow.poll() is None:
            numbers = [workflow.pid] if victim == "workflow" else self._find(victim, workflow.pid)
            if numbers and (victim != "workflow" or self._find("job", workflow.pid)):
                return self.rng.choice(numbers)
            time.sleep(0.1)
        return None

    def _find(self, victim: str, workflow: int) -> list[int]:
        """Processes of this run: jobs and the server know the workflow, forks are its children."""
        jobs, servers, children = [], [], {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
                environment = (folder / "environ").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            number = int(folder.name)
            if f"LETHE_OWNER={workflow}:".encode() not in environment:
                continue
            children.setdefault(parent, []).append(number)
            if "lethe.jobs.warm" in command:
                servers.append(number)
            elif "/scripts/" in command and command.startswith(sys.executable):
                jobs.append(number)
        forks = []
        for server in servers:
            forks += children.get(server, [])
        servers = [number for number in servers if number not in forks]
        return {"job": jobs, "server": servers, "fork": forks}[victim]

    def delete_measurements(self) -> None:
        """Deletes base losses, rows and Z, so that there is work to kill."""
        for folder in self.workspace.results.glob("*/rows"):
            shutil.rmtree(folder)
            for name in ("base.parquet", "Z.parquet", "rows.csv"):
                (folder.parent / name).unlink(missing_ok=True)


def soak(folder: Path, kills: int, seed: int) -> Soak:
    """Makes a quiet run, then measures again with kills; fails if the losses differ."""
    workspace = make_workspace(folder / "run")
    workspace.run("--", TARGET)
    killed = Soak(workspace, losses(workspace), random.Random(seed))
    killed.delete_measurements()
    killed.run(kills)
    return killed


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lethe-soak-") as place:
        result = soak(Path(place), kills=int(sys.argv[1]), seed=int((sys.argv[2:] or [0])[0]))
    for name, times in sorted(result.kills.items()):
        print(f"{name:20} {times}")
    print(
        f"{sum(result.kills.values())} kills, {result.starts} starts, {result.rounds} comparisons "
        f"with equal losses, {result.manual_steps} manual steps, "
        f"{time.monotonic() - began:.0f} seconds"
    )
