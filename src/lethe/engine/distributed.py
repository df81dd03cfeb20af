"""One job in several processes, a GPU each, that share a model too large to train on one.

Weights, gradients and optimizer state are sharded; every process takes its part of each training
batch and its share of the batches that are scored. `lethe.jobs.launch` starts such a job; outside
one every function here is that of one process.

Shards are PyTorch's own (`fully_shard`, FSDP2). accelerate wraps the same, but on GPUs only: of two
processes on a CPU its version 1.15 makes data-parallel ones, and nothing could be tested there.
"""

import os
from collections.abc import Sequence
from typing import Any


def size() -> int:
    """Processes that share this job."""
    return int(os.environ.get("LETHE_PROCESSES", "1"))


def rank() -> int:
    """Number of this process; 0 writes the results."""
    return int(os.environ.get("LETHE_RANK", "0"))


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
