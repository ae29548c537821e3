"""sbatch parameters and submitit executors."""

from __future__ import annotations

import io
import logging
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from densevit.launch.slurm import commands, relay
from densevit.launch.slurm.profile import Profile
from densevit.launch.slurm.submissions import DEFAULT_HOURS, Chunk, Submission

# For submitit, never reached: `attempts` counts the timeouts without a new step.
TIMEOUTS = 1_000_000


def parameters(
    request: Mapping[str, Any], profile: Profile, name: str, code: str
) -> dict[str, Any]:
    """Return submitit's parameters for a job. Pure: its batch script has a golden test.

    A run on several GPUs or nodes has one process per GPU, or one per node without GPUs.
    """
    gpus, pack = int(request.get("gpus", 0)), request.get("pack", 1)
    processes = max(1, gpus) if pack == 1 else 1
    given: dict[str, Any] = {
        "job_name": name,
        "time": math.ceil(60 * request.get("hours", DEFAULT_HOURS)),
        "nodes": request.get("nodes", 1),
        "ntasks_per_node": processes,
        "array_parallelism": profile.throttle,
        "signal_delay_s": profile.signal_seconds,
        "stderr_to_stdout": True,
        "wckey": None,  # else "submitit", which a cluster without this wckey refuses
        "setup": [*_checked(profile.setup), *_environment(code)],
    }
    # Since Slurm 22.05 srun no longer inherits --cpus-per-task from the batch job.
    srun = ["--kill-on-bad-exit=1"] if processes * given["nodes"] > 1 else []
    if "cpus" in request:
        given["cpus_per_task"] = max(1, request["cpus"] // processes)
        srun.append(f"--cpus-per-task={given['cpus_per_task']}")
    given["srun_args"] = srun
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if getattr(profile, key) is not None:
            given[key] = getattr(profile, key)
    additional: dict[str, Any] = {"hold": True, "requeue": True}
    if gpus:
        kind = f"{profile.gpu_type}:{gpus}" if profile.gpu_type else str(gpus)
        gres = profile.gpu_request == "gres"
        additional["gres" if gres else "gpus-per-node"] = f"gpu:{kind}" if gres else kind
    if "mem" in request:
        additional["mem"] = _memory(request["mem"])
    additional |= {k: v for k, v in profile.options.items() if v is not False}
    given["additional_parameters"] = additional
    return given


def _memory(text: str) -> str:
    """Return a memory size without a fraction, which Slurm refuses: 1.5G is 1536M."""
    factor = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}.get(text[-1], 1)
    return f"{math.ceil(factor * float(text.rstrip('KMGT')))}M" if "." in text else text


def _checked(setup: Sequence[str]) -> list[str]:
    """Return lines that end the job with their text if one of them fails."""
    if not setup:
        return []
    stop = "trap 'echo \"setup failed with exit code $?: $BASH_COMMAND\" >&2; exit 1' ERR"
    return [stop, *setup, "trap - ERR"]


def _environment(code: str) -> list[str]:
    # As `python -P`: else the submission's working folder would be first on sys.path.
    lines = ["export PYTHONSAFEPATH=1"]
    if code:
        lines.append(f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def job_script(submission: Submission, request: Mapping[str, Any], profile: Profile) -> str:
    """Return the batch script of a job that requests some resources and does nothing."""
    executor = make_executor(submission, request, submission.chunks[0].name, profile)
    return str(executor._make_submission_file_text("true", ""))


@contextmanager
def quietly() -> Iterator[None]:
    """Call submitit in a clean environment; silence its logs of errors that it also raises."""
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    with commands.clean_environment(), redirect_stderr(io.StringIO()):
        yield


def make_executor(
    submission: Submission, request: Mapping[str, Any], name: str, profile: Profile
) -> Any:
    from submitit import SlurmExecutor

    # A SIGUSR2 before Python handles signals must not end the job: SIGTERM follows later.
    python = f'sh -c \'trap "" USR2; exec "$@"\' - {_python(submission, profile)}'
    executor = SlurmExecutor(submission.jobs_folder, max_num_timeout=TIMEOUTS, python=python)
    given = parameters(request, profile, name, submission.code)
    if profile.container is not None:
        given["setup"] += relay.lines(submission.jobs_folder)
    if profile.container is not None and profile.container.runtime == "pyxis":
        given["srun_args"] += [
            f"--container-image={profile.container.image}",
            "--container-mounts=" + ",".join(f"{m}:{m}" for m in _mounts(submission, profile)),
        ]
    executor.update_parameters(**given)
    return executor


def _python(submission: Submission, profile: Profile) -> str:
    """Return the command that is Python for a job, in its container if it has one."""
    container = profile.container
    if container is None:
        return profile.python or shlex.quote(sys.executable)
    python = profile.python or "python3"  # of the container
    if container.runtime == "pyxis":
        return python
    binds = ",".join(_mounts(submission, profile))
    start = [container.runtime, "exec", "--nv", "--bind", binds, container.image]
    return f"{shlex.join(start)} {python}"


def _mounts(submission: Submission, profile: Profile) -> list[str]:
    outputs = str(submission.folder.parents[3])
    return [outputs, *(profile.container.mounts if profile.container else ())]


def count_tasks(submission: Submission, chunk: Chunk) -> list[Any]:
    from densevit.launch.slurm.job import Task

    runs = submission.folder.parents[3] / "runs"
    return [
        Task(tuple(str(runs / run) for run in task))
        for task in submission.tasks[chunk.first : chunk.first + chunk.count]
    ]
