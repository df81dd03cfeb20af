"""Runs Snakemake as a child process, and turns its failure into one error."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import lethe
from lethe.errors import LetheError
from lethe.jobs.owner import COMMAND, Owner

# Files by which a checkout of lethe is recognised.
_OF_CHECKOUT = ("Snakefile", "rules/common.smk", "profiles/default")
# Options that decide how many jobs run side by side, or that come with a profile that does.
_PARALLELISM = re.compile(r"--(cores|jobs|profile|executor)(=|$)|-[cje]")
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)( in file .*)?:?$")


def checkout_folder(folder: Path = Path()) -> Path:
    """The checkout of lethe: this folder, or else the one that contains the library.

    Raises
    ------
    LetheError
        If neither is a checkout.
    """
    candidates = [folder.resolve(), Path(lethe.__file__).resolve().parents[2]]
    for candidate in candidates:
        if all((candidate / name).exists() for name in _OF_CHECKOUT):
            return candidate
    raise LetheError(
        f"{candidates[0]}: the workflow needs a checkout of lethe, with its Snakefile and rules; "
        "change to the folder of your checkout and run again"
    )


def snakemake_command(
    checkout: Path, experiment: Path, options: Sequence[str], leave_out: Sequence[str] = ()
) -> list[str]:
    """The command line of Snakemake for an experiment, with the user's options.

    Parameters
    ----------
    options
        If one of them is `--`, the targets follow it.
    leave_out
        Tasks that replace the experiment's `leave_out`; empty for no change.
    """
    end = options.index("--") if "--" in options else len(options)
    options, targets = options[:end], options[end:]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(checkout / "Snakefile")]
    if not any(option.startswith("--workflow-profile") for option in options):
        command += ["--workflow-profile", str(checkout / "profiles" / "default")]
    if not any(_PARALLELISM.match(option) for option in options):
        command += ["--cores", "all"]
    # Snakemake reads everything after --configfile as a config file, up to a `--`.
    command += options
    if leave_out:
        command += ["--config", f"leave_out={json.dumps(list(leave_out))}"]
    return [*command, "--configfile", str(experiment), *targets]


class FailedWorkflow(LetheError):
    """A run that failed.

    Attributes
    ----------
    jobs
        Rule, and the first file, of each job that failed; empty if the failure was another one.
    """

    def __init__(self, message: str, jobs: Sequence[tuple[str, str]] = ()):
        super().__init__(message)
        self.jobs = list(jobs)


@dataclass
class FailureSummary:
    """Reads Snakemake's messages line by line and keeps the parts that explain a failure."""

    rules: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    jobs: list[tuple[str, str]] = field(default_factory=list)
    usage: str = ""
    exception: str = ""
    _in_traceback: bool = False
    _explains_exception: bool = False
    _in_failed_rule: bool = False
    _lists_problems: bool = False

    def note(self, line: str) -> bool:
        """Notes a line; False if it belongs to a traceback, which is not for the terminal."""
        text = line.rstrip("\n")
        if text.startswith("Traceback (most recent call last)"):
            self._in_traceback = True
            return False
        if self._in_traceback and (not text or text.startswith(" ")):
            return False
        if self._in_traceback:
            self._in_traceback = False
            self.exception = text
        elif self._explains_exception:
            self.exception = text.strip()
        self._explains_exception = _EXCEPTION.match(text) is not None
        self._sort(text)
        return True

    def _sort(self, text: str) -> None:
        after_error = self._lists_problems
        self._lists_problems = text.startswith("error: ")
        if self._lists_problems:
            self.errors.append(text.removeprefix("error: "))
        elif after_error and text.startswith("  - "):
            # The first of several problems names a cause; the log has all of them.
            self.errors[-1] += f": {text.removeprefix('  - ')}"
        elif match := re.match(r"Error in (?:\w*)rule (\w+)", text):
            self.rules.append(match[1])
            self._in_failed_rule = True
        elif match := re.match(r"\s+output: ([^\s,]+)", text):
            if self._in_failed_rule:
                self.jobs.append((self.rules[-1], match[1]))
        elif match := re.match(r"\s+log: (\S+)", text):
            if self._in_failed_rule:
                self.logs.append(match[1].rstrip(","))
        elif match := re.match(r"(?:snakemake|__main__\.py): error: (.*)", text):
            self.usage = match[1]
        elif not text.startswith(" "):
            self._in_failed_rule = False

    def message(self) -> str:
        """The failure in one line: the jobs that failed, why, and where the details are."""
        if self.usage:
            return f"Snakemake: {self.usage}; `snakemake --help` lists its options"
        errors = list(dict.fromkeys(self.errors))
        if not self.rules:
            return errors[-1] if errors else self.exception or "Snakemake failed; see its messages"
        names = ", ".join(dict.fromkeys(self.rules))
        count = len(self.rules)
        jobs = "1 job failed" if count == 1 else f"{count} jobs failed"
        reason = errors[0] if errors else self.exception or "see its log"
        more = f" (and {len(errors) - 1} more error(s))" if len(errors) > 1 else ""
        details = f"; details: {self.logs[0]}" if self.logs else ""
        return f"{jobs} ({names}): {reason}{more}{details}; run again to continue"


def run_snakemake(
    experiment: Path,
    options: Sequence[str] = (),
    *,
    leave_out: Sequence[str] = (),
    stdout_to_stderr: bool = False,
) -> None:
    """Runs the workflow of an experiment in the current folder and shows Snakemake's messages.

    Parameters
    ----------
    options
        Options and targets of Snakemake.
    leave_out
        Tasks that replace the experiment's `leave_out`; empty for no change.
    stdout_to_stderr
        Leave stdout to the caller.

    Raises
    ------
    LetheError
        If Snakemake is not installed.
    FailedWorkflow
        If Snakemake fails, with the reason in one line.
    """
    if importlib.util.find_spec("snakemake") is None:
        raise LetheError(
            "the workflow needs Snakemake: install it with pip install 'lethe-forgetting[workflow]'"
        )
    command = snakemake_command(checkout_folder(), experiment, options, leave_out)
    output = sys.stderr if stdout_to_stderr else None
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {COMMAND: Owner.of_process(os.getpid()).variable()},
    )
    stop = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    # Ctrl-C reaches Snakemake too, which ends its jobs; we wait for it.
    interrupt = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        summary = _show(process.stderr, sys.stderr)
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, interrupt)
    if status:
        raise FailedWorkflow(summary.message(), summary.jobs)


def _show(lines: Iterable[str], stream: TextIO) -> FailureSummary:
    """Shows Snakemake's messages as they come, without tracebacks."""
    summary = FailureSummary()
    for line in lines:
        if summary.note(line):
            stream.write(line)
            stream.flush()
    return summary
