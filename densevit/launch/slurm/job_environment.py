"""The environment of a run inside a Slurm job: rank, rendezvous, devices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from densevit.launch.slurm import commands, submissions
from densevit.runs.provenance import JOB, LAUNCHER
from densevit.utils.distributed import RENDEZVOUS, without_rendezvous
from densevit.utils.threads import limit_processors, processors


@dataclass(frozen=True)
class Place:
    """The position of this process in its job."""

    job: str  # as in the records: ARRAY_INDEX, or a number
    slurm_id: str
    restart: int
    node: str
    rank: int
    ranks: int
    submission: submissions.Submission

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_canary(self) -> bool:
        return self.submission.canary and self.job == next(iter(self.submission.elements()))


def current_place() -> Place:
    from submitit import JobEnvironment

    here = JobEnvironment()
    return Place(
        job=here.job_id,
        slurm_id=here.raw_job_id,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        node=os.environ.get("SLURMD_NODENAME", here.hostname),
        rank=here.global_rank,
        ranks=here.num_tasks,
        submission=submissions.read(Path(os.environ["SUBMITIT_FOLDER"]).parent),
    )


def run_environment(place: Place, number: int, runs: int) -> dict[str, str]:
    """Return this process's environment with a run's share of the job's CPUs and GPUs."""
    environment = {**without_rendezvous(os.environ), LAUNCHER: "slurm", JOB: place.job}
    limit_processors(environment, _processors() // runs)
    if place.ranks > 1:
        from submitit.helpers import TorchDistributedEnvironment

        # submitit would draw from 20000 to 60000, where any program's connection may have the port.
        os.environ["MASTER_PORT"] = str(_FIRST_PORT + int(place.slurm_id) % _PORTS)
        # Keep Slurm's GPU mask: it may differ from task to task.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        environment |= {name: os.environ[name] for name in RENDEZVOUS}
        environment["MASTER_ADDR"] = commands.address(environment["MASTER_ADDR"])
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if runs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


def _processors() -> int:
    """Return the processors that Slurm gave to this task. A node that confines no job shows it all
    of its processors, and SLURM_CPUS_PER_TASK is set only if the job asked for a number."""
    tasks = _number("SLURM_NTASKS_PER_NODE") or 1
    given = _number("SLURM_CPUS_PER_TASK") or (_number("SLURM_CPUS_ON_NODE") or 0) // tasks
    return min(given or processors(), processors())


def _number(name: str) -> int | None:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else None


# Linux gives no connection a port below 32768, and Ray's workers have those up to 19999.
_FIRST_PORT, _PORTS = 20000, 12000
