"""A SLURM cluster of one machine with two simulated GPUs, in its own folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

# Debian has them in sbin, which is not on every PATH.
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
NEEDED = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
GPUS = 2
# Without accounting there is only squeue. A small cluster can be queried often.
CLUSTER = (
    *("--slurm-status-command", "squeue", "--slurm-no-account"),
    *("--slurm-init-seconds-before-status-checks", "3", "--seconds-between-status-checks", "2"),
)


def why_unavailable() -> str | None:
    """The reason why no cluster can be started on this machine, or None."""
    missing = [name for name in NEEDED if shutil.which(name, path=SEARCH) is None]
    if missing:
        return f"SLURM is not installed ({', '.join(missing)}); `make test-slurm` installs it"
    return None if os.getuid() == 0 else "slurmd needs root"


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@dataclass
class Cluster:
    """munged, slurmctld and slurmd with everything they write below `folder`."""

    folder: Path
    _daemons: list[subprocess.Popen] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which commands find this cluster and no other."""
        path = f"{self.folder}/bin:{SEARCH}"
        return os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        """Starts the daemons and waits, for a minute at most, until the node is idle."""
        for name in ("bin", "state", "spool", "log", "prolog"):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        key = self.folder / "munge.key"
        self.run("mungekey", "--create", "--keyfile", str(key))
        self._daemon(
            *("munged", "--foreground", "--force", "--key-file", str(key)),
            *("--socket", str(self.folder / "munge.socket")),
            *("--pid-file", str(self.folder / "munge.pid")),
            *("--seed-file", str(self.folder / "munge.seed")),
            *("--log-file", str(self.folder / "log/munge")),
        )
        self.wait((self.folder / "munge.socket").exists, 20)
        self._daemon("slurmctld", "-D")
        self.start_node()

    def start_node(self) -> None:
        """Starts slurmd and waits until its node takes jobs."""
        self._daemon("slurmd", "-D")
        self.wait(lambda: "idle" in self.state(), 60)

    def state(self) -> str:
        """The node's state, as sinfo prints it."""
        process = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"],
            **{"env": self.environment, "capture_output": True, "text": True, "timeout": 30},
        )
        return process.stdout.strip()

    def run(self, *command: str) -> str:
        """Runs a command against this cluster; its output. Fails after a minute."""
        process = subprocess.run(
            command,
            **{"env": self.environment, "capture_output": True, "text": True, "timeout": 60},
        )
        assert process.returncode == 0, f"{command}: {process.stdout}{process.stderr}"
        return process.stdout

    def revive(self, node: str) -> None:
        """Brings a node back that was set down; it may have come back by itself."""
        self.wait(lambda: self._resumed(node), 60)

    def _resumed(self, node: str) -> bool:
        command = ["scontrol", "update", f"nodename={node}", "state=resume"]
        quiet = {"env": self.environment, "capture_output": True, "timeout": 30}
        subprocess.run(command, check=False, **quiet)
        return "idle" in self.state()

    def jobs(self) -> list[dict[str, str]]:
        """Every job that the controller remembers, one per task of an array."""
        output = self.run("scontrol", "--oneliner", "--details", "show", "jobs")
        lines = [line for line in output.splitlines() if line.startswith("JobId=")]
        return [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]

    def queued(self, state: str) -> list[str]:
        """Ids of the jobs in this state."""
        return self.run("squeue", "--noheader", f"--states={state}", "--format=%i").split()

    def gpu_times(self) -> list[tuple[str, str, float, float]]:
        """(job, GPU, from, to) of every GPU that a job had, as prolog and epilog recorded it."""
        began, ended = {}, {}
        for line in (self.folder / "prolog/log").read_text().splitlines():
            event, job, gpus, moment = line.split(";")
            for gpu in filter(None, gpus.split(",")):
                (began if event == "began" else ended)[job, gpu] = float(moment)
        return [(*key, start, ended.get(key, time.time())) for key, start in began.items()]

    def stop(self) -> None:
        """Ends every job and daemon, whatever state they are in."""
        if (self.folder / "munge.socket").exists():
            with contextlib.suppress(subprocess.SubprocessError):
                subprocess.run(
                    ["scancel", "--user=root"],
                    **{"env": self.environment, "capture_output": True, "timeout": 30},
                )
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(timeout=20)

    def wait(self, condition, seconds: float) -> None:
        """Waits until the condition holds; fails with the last lines of the daemons' logs."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self._last_words()
            time.sleep(0.2)

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"log/{command[0]}.out").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self._daemons.append(subprocess.Popen(command, env=self.environment, **streams))

    def _last_words(self) -> str:
        logs = sorted((self.folder / "log").iterdir())
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-600:]}" for log in logs)

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname()
        for event in ("began", "ended"):
            script = folder / f"prolog/{event}.sh"
            script.write_text(
                f'#!/bin/sh\necho "{event};$SLURM_JOB_ID;$SLURM_JOB_GPUS;$(date +%s.%N)" '
                f">> {folder}/prolog/log\n"
            )
            script.chmod(0o755)
        # Snakemake's step in a job forgets SLURM_CONF, and with it where the cluster is.
        srun = folder / "bin/srun"
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec /usr/bin/srun "$@"\n')
        srun.chmod(0o755)
        devices = ",".join(f"/dev/tty{i}" for i in range(GPUS))
        (folder / "gres.conf").write_text(
            "AutoDetect=off\n"
            + "".join(f"Name=gpu File={device}\n" for device in devices.split(","))
        )
        settings = {
            **{"ClusterName": "lethe", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root"},
            **{"AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge.socket"},
            **{"CredType": "cred/munge", "SlurmctldPort": free_port(), "SlurmdPort": free_port()},
            **{"StateSaveLocation": f"{folder}/state", "SlurmdSpoolDir": f"{folder}/spool"},
            **{"SlurmctldPidFile": f"{folder}/ctld.pid", "SlurmdPidFile": f"{folder}/d.pid"},
            **{"ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none"},
            **{"SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory"},
            **{"GresTypes": "gpu", "MpiDefault": "none", "ReturnToService": 2},
            **{"Prolog": f"{folder}/prolog/began.sh", "Epilog": f"{folder}/prolog/ended.sh"},
            # There are no cgroups to limit memory; SLURM checks every second.
            **{"JobAcctGatherType": "jobacct_gather/linux", "JobAcctGatherFrequency": "task=1"},
            # The warm server and its forks share most pages: shares of pages, not resident sets.
            **{"JobAcctGatherParams": "UsePss,OverMemoryKill"},
            # Finished jobs are remembered for as long as a test may query them.
            **{"MinJobAge": 3600, "JobRequeue": 1, "KillWait": 5, "SlurmdTimeout": 30},
            **{"SchedulerParameters": "batch_sched_delay=0,sched_min_interval=200000"},
            **{"AccountingStorageType": "accounting_storage/none"},
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        node = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=8000"
        lines.append(f"{node} Gres=gpu:{GPUS} State=UNKNOWN")
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        lines.append("PartitionName=gpu Nodes=ALL MaxTime=INFINITE State=UP")
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
