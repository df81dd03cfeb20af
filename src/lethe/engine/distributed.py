"""One job in several processes, one GPU each, that share a model too large to train on one GPU.

Weights, gradients and optimizer state are sharded. Every process takes its part of each training
batch and its share of the batches that are scored. `lethe.jobs.launch` starts such a job. In a job
of one process, the functions below return that process's own values.

Shards are PyTorch's own (`fully_shard`, FSDP2). accelerate wraps the same function, but on GPUs
only: its version 1.15 turns two processes on a CPU into data-parallel ones, so nothing could be
tested there.
"""

import os
from collections.abc import Sequence
from typing import Any


def size() -> int:
    """Number of processes that share this job."""
    return int(os.environ.get("LETHE_PROCESSES", "1"))


def rank() -> int:
    """Number of this process; process 0 writes the results."""
    return int(os.environ.get("LETHE_RANK", "0"))


def shard(model: Any) -> None:
    """Shards a model in place, layer by layer, onto the processes' devices."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    on_gpus = torch.cuda.is_available() and torch.distributed.get_backend() == "nccl"
    mesh = init_device_mesh("cuda" if on_gpus else "cpu", (size(),))
    layer_classes = set(model._no_split_modules or ())
    for module in list(model.modules()):
        if type(module).__name__ in layer_classes:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_tensor(tensor: Any) -> Any:
    """The tensor, put together if it is sharded; all processes must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def copy_full(tensor: Any, value: Any) -> None:
    """Copies an unsharded `value` into a tensor that may be sharded."""
    import torch

    with torch.no_grad():
        if hasattr(tensor, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            value = value.to(tensor.device, tensor.dtype)
            # Every process holds the full value, so nothing needs to be sent.
            value = distribute_tensor(
                value, tensor.device_mesh, tensor.placements, src_data_rank=None
            )
        tensor.copy_(value)


def all_gather(value: Any) -> list[Any]:
    """The value of every process, in the order of their numbers."""
    if size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def all_max(value: int) -> int:
    """The largest value of any process."""
    return max(all_gather(value))


def take_turn(waiting: list[Any]) -> tuple[list[Any], Any]:
    """Takes one item per process from the end of `waiting`.

    Returns
    -------
    The items of all processes, and this process's item, None if there is no item for it.
    """
    turn = [waiting.pop() for _ in range(min(size(), len(waiting)))]
    return turn, turn[rank()] if rank() < len(turn) else None


def share_of(parts: Sequence[Any], filler: Any) -> list[Any]:
    """The share of this process in `parts`; `filler` makes all shares equally long."""
    short = -len(parts) % size()
    return [*parts, *[filler] * short][rank() :: size()]
