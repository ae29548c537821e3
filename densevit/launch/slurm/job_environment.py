"""The environment of a run inside a Slurm job: rank, rendezvous, devices."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from densevit.launch.slurm import commands, submissions
from densevit.runs.provenance import JOB, LAUNCHER


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
    cpus = len(os.sched_getaffinity(0))
    with suppress(ValueError):
        cpus = min(cpus, int(os.environ.get("SLURM_CPUS_PER_TASK", cpus)))
    environment = {
        "OMP_NUM_THREADS": str(max(1, cpus // runs)),
        **os.environ,
        LAUNCHER: "slurm",
        JOB: place.job,
    }
    if place.ranks > 1:
        from submitit.helpers import TorchDistributedEnvironment

        # submitit would draw from 20000 to 60000, where any program's connection may have the port.
        os.environ["MASTER_PORT"] = str(_FIRST_PORT + int(place.slurm_id) % _PORTS)
        # Keep Slurm's GPU mask: it may differ from task to task.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        environment |= {k: os.environ[k] for k in _RENDEZVOUS}
        environment["MASTER_ADDR"] = commands.address(environment["MASTER_ADDR"])
    else:
        for name in ("SUBMITIT_EXECUTOR", *_RENDEZVOUS):  # set in a shell within another job
            environment.pop(name, None)
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if runs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    return environment


# Linux gives no connection a port below 32768, and Ray's workers have those up to 19999.
_FIRST_PORT, _PORTS = 20000, 12000
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
