"""Starts a job in several processes that share a model, and ends them together."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lethe.engine import devices
from lethe.jobs import calls, process, warm

# Long, because a process that dies is noticed by the process that started it, not by waiting.
_PATIENCE = timedelta(hours=6)
_SECONDS_TO_LEAVE = 10
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_in_shards(
    function: Callable[..., None], log: str, processes: int, **arguments: Any
) -> None:
    """Calls `function(**arguments)` in several processes at once.

    Process 0 writes the log. If one process fails, all end, and what that process said, or what
    killed it, is added to the log. Signals go to all processes.
    """
    import torch.multiprocessing as mp

    devices.claim(arguments.get("gpus", 0))
    call = json.dumps(calls.to_json(function, arguments))
    # The processes are forks of one that imports torch once for all of them. Libraries of other
    # systems than Linux do not survive a fork.
    multiprocessing.set_forkserver_preload(list(warm.LIBRARIES))
    with tempfile.TemporaryDirectory(prefix="lethe-") as folder:
        context = mp.start_processes(
            _process,
            (processes, folder, call, dict(os.environ), log),
            processes,
            join=False,
            start_method="forkserver" if sys.platform == "linux" else "spawn",
        )

        def forward(number: int, _frame: Any) -> None:
            for child in context.processes:
                # The number of an ended process may belong to another program.
                if child.is_alive():
                    os.kill(child.pid, number)

        before = {number: signal.signal(number, forward) for number in _SIGNALS}
        try:
            while not context.join(timeout=1, grace_period=_SECONDS_TO_LEAVE):
                pass
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise SystemExit(_report_failure(error, folder, log))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _report_failure(error: Any, folder: str, log: str) -> int:
    """Adds what the failed process said to the terminal and the log; the exit status.

    Process 0 says it there itself, unless it is killed or fails before the job's function begins.
    """
    failed = error.error_index
    # A process without an exit code of its own raised an error before the function began.
    code = getattr(error, "exit_code", None)
    said = Path(folder, f"{failed}.log")
    messages = said.read_text("utf-8", errors="replace") if said.exists() else ""
    if code is None:
        messages += error.msg
    text = ""
    if failed or messages:
        text = f"process {failed} of the job ended first; its messages:\n{messages.rstrip()}\n"
    if code is not None and code < 0:
        text += f"error: process {failed} of the job {process.killed_by(-code)}\n"
    print(text, end="", file=sys.stderr)
    process.add_to_log(log, text)
    if code is None:
        return 1
    return code if code > 0 else 128 - code


def _process(
    number: int, processes: int, folder: str, call: str, environment: dict[str, str], log: str
) -> None:
    import torch
    import torch.distributed as dist

    # Ctrl-C reaches the process that started this one, which passes it on. Directly from the
    # terminal it would come twice, and the second ends a job without saving.
    os.setsid()
    os.environ.clear()
    os.environ |= environment
    os.environ |= {"LETHE_RANK": str(number), "LETHE_PROCESSES": str(processes)}
    if number:
        own = os.open(Path(folder, f"{number}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(own, 2)
        log = os.devnull
    request = calls.from_json(call)
    on_gpu = bool(request["arguments"].get("gpus")) and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(number)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=number,
        world_size=processes,
        timeout=_PATIENCE,
    )
    code = 1
    try:
        code = process.exit_status(request["function"], log, **request["arguments"])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    if code == 0:
        dist.destroy_process_group()
    # To tear down torch's threads aborts now and then, which would hide the status.
    os._exit(code)
