"""The processes that train one run together; usually there is one.

Their ranks and the address where they meet come from the launcher: torchrun and Ray set environment
variables, Slurm goes through submitit. Importing this module does not import torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from densevit.utils.errors import UserError

if TYPE_CHECKING:
    import torch


_host: Any = None  # gloo group for data on the host; the default group serves the GPUs


class World(NamedTuple):
    """The `rank` of this process among `ranks`, and its rank on its machine."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0

    @property
    def writes(self) -> bool:
        """Return True for rank 0, the only process that writes files."""
        return self.rank == 0


# How processes of a run find each other, as torchrun, Ray Train and our Slurm jobs set it.
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def without_rendezvous(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for a run of its own: left over from a shell inside another job, these
    variables would make it wait for processes that nobody starts."""
    return {
        name: value
        for name, value in environment.items()
        if name not in (*RENDEZVOUS, "SUBMITIT_EXECUTOR") and not name.startswith("TORCHELASTIC_")
    }


def world() -> World:
    """Return this process's ranks as the environment gives them, without importing torch.

    Errors: `UserError` if the environment holds a part of them.
    """
    env = os.environ
    if "WORLD_SIZE" in env:  # torchrun, Ray
        try:
            found = World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
        except (KeyError, ValueError):
            found = World(rank=-1)
        alone = found.ranks == 1 or {"MASTER_ADDR", "MASTER_PORT"} <= env.keys()
        if not (alone and 0 <= found.rank < found.ranks):
            raise UserError(
                f"WORLD_SIZE={env['WORLD_SIZE']} is set in the environment, but RANK, MASTER_ADDR "
                f"and MASTER_PORT do not fit it; start the processes of a run with torchrun, or "
                f"unset WORLD_SIZE"
            )
        return found
    if "SUBMITIT_EXECUTOR" in env:
        from submitit import JobEnvironment

        job = JobEnvironment()
        return World(job.global_rank, job.num_tasks, job.local_rank)
    return World()


@contextmanager
def process_group(device_type: str) -> Iterator[World]:
    """Connect the processes of a run: NCCL for GPUs, gloo for the host."""
    here = world()
    if here.ranks == 1:
        yield here
        return
    from torch import distributed

    already = distributed.is_initialized()  # by Ray Train
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
        # gloo's thread needs the GIL once more to release the last exchange. Destroying the group
        # at once waits for that thread while holding the GIL: a deadlock (seen in one of 25 runs
        # with torch 2.13).
        time.sleep(0.5)
        distributed.destroy_process_group(_host)
        _host = None
        if not already:
            distributed.destroy_process_group()


def all_reduce_max(number: int, here: World) -> int:
    """Return the maximum of a number over all processes; on the host, so without a GPU sync."""
    if here.ranks == 1:
        return number
    import torch
    from torch import distributed

    value = torch.tensor(number)
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=_host)
    return int(value)


def all_reduce_sum(tensor: torch.Tensor, here: World) -> torch.Tensor:
    """Sum a tensor over all processes, in place."""
    if here.ranks > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor


def all_gather(value: Any, here: World) -> list[Any]:
    """Return the value of every process, in rank order."""
    if here.ranks == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * here.ranks
    distributed.all_gather_object(values, value, group=_host)
    return values
