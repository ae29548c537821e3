"""The processes that train one run together; one process is the usual case.

Who they are and how they meet is told by what started them: torchrun and Ray by their environment,
Slurm through submitit. Importing this imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch


_host: Any = None  # the connection for what lies on the host, beside that of the devices


class World(NamedTuple):
    """This process's `rank` of `ranks`, and its number on its machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0


def world() -> World:
    """What the environment says, before torch is there."""
    env = os.environ
    if "WORLD_SIZE" in env:  # torchrun, Ray
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if "SUBMITIT_EXECUTOR" in env:
        from submitit import JobEnvironment

        job = JobEnvironment()
        return World(job.global_rank, job.num_tasks, job.local_rank)
    return World()


@contextmanager
def joined(device_type: str) -> Iterator[World]:
    """The processes of a run, connected: by gloo for the host, NCCL for GPUs."""
    here = world()
    if here.ranks == 1:
        yield here
        return
    from torch import distributed

    already = distributed.is_initialized()  # Ray Train has done it
    if not already:
        if "WORLD_SIZE" not in os.environ:
            from submitit.helpers import TorchDistributedEnvironment

            TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        distributed.init_process_group("nccl" if device_type == "cuda" else "gloo")
    global _host
    _host = distributed.new_group(backend="gloo")
    try:
        yield here
    finally:
        # gloo's thread needs the interpreter once more, to let go of the last exchange. A group
        # that is taken apart at once waits for that thread with the interpreter in its hand, for
        # ever (seen in one of 25 runs with torch 2.13).
        time.sleep(0.5)
        distributed.destroy_process_group(_host)
        _host = None
        if not already:
            distributed.destroy_process_group()


def agreed(number: int, here: World) -> int:
    """The largest of a number over all processes; on the host, so that no GPU is waited for."""
    if here.ranks == 1:
        return number
    import torch
    from torch import distributed

    held = torch.tensor(number)
    distributed.all_reduce(held, distributed.ReduceOp.MAX, group=_host)
    return int(held)


def summed(tensor: torch.Tensor, here: World) -> torch.Tensor:
    """A tensor summed over all processes, in place."""
    if here.ranks > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def gathered(value: Any, here: World) -> list[Any]:
    """A value of every process, in the order of their ranks."""
    if here.ranks == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * here.ranks
    distributed.all_gather_object(values, value, group=_host)
    return values
