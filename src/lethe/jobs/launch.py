"""Starts a job in several processes that share a model, and ends them together."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from lethe.engine import devices
from lethe.jobs import calls, process

# Long, because a process that dies is noticed by the process that started it, not by waiting.
_PATIENCE = timedelta(hours=6)
_SECONDS_TO_LEAVE = 10


def run_in_shards(
    function: Callable[..., None], log: str, processes: int, **arguments: Any
) -> None:
    """Calls `function(**arguments)` in several processes at once.

    Process 0 writes the log. If one process fails, all end, and the messages of that process are
    added to the log. Signals go to all processes.
    """
    import torch.multiprocessing as mp

    devices.claim(arguments.get("gpus", 0))
    call = json.dumps(calls.to_json(function, arguments))
    with tempfile.TemporaryDirectory(prefix="lethe-") as folder:
        context = mp.start_processes(
            _process, (processes, folder, call, log), processes, join=False, start_method="spawn"
        )

        def forward(number: int, _frame: Any) -> None:
            for child in context.processes:
                # The number of an ended process may belong to another program.
                if child.is_alive():
                    os.kill(child.pid, number)

        before = {number: signal.signal(number, forward) for number in (15, 2)}
        try:
            while not context.join(timeout=1, grace_period=_SECONDS_TO_LEAVE):
                pass
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise SystemExit(_report_failure(error, folder, log))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _report_failure(error: Any, folder: str, log: str) -> int:
    """Adds the messages of the failed process to the terminal and the log; the exit status."""
    failed = error.error_index
    if failed:
        messages = Path(folder, f"{failed}.log").read_text("utf-8", errors="replace")
        text = f"process {failed} of the job ended first; its messages:\n{messages}"
        print(text, file=sys.stderr)
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(text)
    code = getattr(error, "exit_code", 1)
    return code if code > 0 else 128 - code


def _process(number: int, processes: int, folder: str, call: str, log: str) -> None:
    import torch
    import torch.distributed as dist

    os.environ |= {"LETHE_RANK": str(number), "LETHE_PROCESSES": str(processes)}
    if number:
        log = str(Path(folder, f"{number}.log"))
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
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
    code = process.exit_status(request["function"], log, **request["arguments"])
    if code == 0:
        dist.destroy_process_group()
    # To tear down torch's threads aborts now and then, which would hide the status.
    os._exit(code)
