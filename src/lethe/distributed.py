"""One job in several processes, a GPU each, that share a model too large to train on one.

Weights, gradients and optimizer state are sharded (PyTorch's `fully_shard`, FSDP2, which
accelerate's FSDP wraps as well); every process takes its part of each training batch and its share
of the batches that are scored. Outside such a job every function here is that of one process.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lethe import calls, devices, jobs

# Long, because a process that dies is noticed by the one that started it, not by waiting.
_PATIENCE = timedelta(hours=6)
_SECONDS_TO_LEAVE = 10


def size() -> int:
    """Processes that share this job."""
    return int(os.environ.get("LETHE_PROCESSES", "1"))


def rank() -> int:
    """Number of this process; 0 writes the results."""
    return int(os.environ.get("LETHE_RANK", "0"))


def run(function: Callable[..., None], log: str, processes: int, **arguments: Any) -> None:
    """As `lethe.jobs.run`, in so many processes at once.

    The log is that of process 0. If one fails, all end, and what the one said goes to the log.
    Signals go to all.
    """
    import torch.multiprocessing as mp

    devices.claim(arguments.get("gpu", 0))
    call = json.dumps(calls.to_json(function, arguments))
    with tempfile.TemporaryDirectory(prefix="lethe-") as folder:
        context = mp.start_processes(
            _process, (processes, folder, call, log), processes, join=False, start_method="spawn"
        )

        def forward(number: int, _frame: Any) -> None:
            for process in context.processes:
                # One that is done has no number any more, or another's.
                if process.is_alive():
                    os.kill(process.pid, number)

        before = {number: signal.signal(number, forward) for number in (15, 2)}
        try:
            while not context.join(timeout=1, grace_period=_SECONDS_TO_LEAVE):
                pass
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise SystemExit(_told(error, folder, log))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _told(error: Any, folder: str, log: str) -> int:
    """The exit status, after what a failed process said went where the user looks."""
    failed = error.error_index
    if failed:
        said = Path(folder, f"{failed}.log").read_text("utf-8", errors="replace")
        text = f"process {failed} of the job ended first; it said:\n{said}"
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
    asked = calls.from_json(call)
    on_gpu = bool(asked["arguments"].get("gpu")) and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(number)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=number,
        world_size=processes,
        timeout=_PATIENCE,
    )
    jobs.run(asked["function"], log, **asked["arguments"])
    dist.destroy_process_group()


def shard(model: Any) -> None:
    """Shards a model in place, layer by layer, onto the processes' devices."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    kind = "cuda" if torch.cuda.is_available() and torch.distributed.get_backend() == "nccl" else ""
    mesh = init_device_mesh(kind or "cpu", (size(),))
    whole = set(model._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in whole:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Any) -> Any:
    """The tensor, put together if it is sharded; all processes must ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(tensor: Any, value: Any) -> None:
    """Copies a whole `value` into a tensor that may be sharded."""
    import torch

    with torch.no_grad():
        if hasattr(tensor, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            value = value.to(tensor.device, tensor.dtype)
            # Everybody has the whole: nothing needs to be sent.
            value = distribute_tensor(
                value, tensor.device_mesh, tensor.placements, src_data_rank=None
            )
        tensor.copy_(value)


def gathered(mine: Any) -> list[Any]:
    """What each process has, by its number."""
    if size() == 1:
        return [mine]
    import torch.distributed as dist

    found: list[Any] = [None] * size()
    dist.all_gather_object(found, mine)
    return found


def largest(value: int) -> int:
    """The largest of what the processes have."""
    return max(gathered(value))


def in_turns(waiting: list[Any]) -> tuple[list[Any], Any]:
    """Takes from the end of `waiting` one thing for each process: all of them, and mine or None."""
    turn = [waiting.pop() for _ in range(min(size(), len(waiting)))]
    return turn, turn[rank()] if rank() < len(turn) else None


def share(parts: Sequence[Any], filler: Any) -> list[Any]:
    """My share of `parts`; everybody's is as long, if need be by `filler`."""
    missing = -len(parts) % size()
    return [*parts, *[filler] * missing][rank() :: size()]
