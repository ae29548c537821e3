"""From runs to jobs: grouped by resources, an array a group and chunk, all of them or none.

Jobs are submitted on hold. They are let go when their ids are on the disk: a command that dies at
any moment leaves jobs that wait, with names that are known, and the next one takes them over.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densevit.errors import Unreachable, UserError
from densevit.sweep.grid import Run
from densevit.sweep.launch.slurm import cluster, records
from densevit.sweep.launch.slurm.attempts import Limits
from densevit.sweep.launch.slurm.canary import advance
from densevit.sweep.launch.slurm.profile import Profile
from densevit.sweep.launch.slurm.records import Chunk, Submission
from densevit.sweep.plan import Plan

# That submitit allows: they are counted by the runs, by whether their step moves.
TIMEOUTS = 1_000_000


@dataclass(frozen=True)
class Group:
    """Runs with equal resources; `tasks` are the runs of each job."""

    resources: Mapping[str, Any]
    tasks: tuple[tuple[Run, ...], ...]


def groups(runs: Iterable[Run], profile: Profile) -> list[Group]:
    """Runs by what they ask for, in the plan's order: by seed first.

    Errors: `UserError` for what Slurm cannot be asked for.
    """
    defaults = profile.resources.model_dump(exclude_none=True)
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        wanted = {**defaults, **run.resources}
        found.setdefault(json.dumps(wanted, sort_keys=True), (wanted, []))[1].append(run)
    made = []
    for wanted, members in found.values():
        _check(wanted)
        size = wanted.get("pack", 1)
        tasks = (tuple(members[i : i + size]) for i in range(0, len(members), size))
        made.append(Group(wanted, tuple(tasks)))
    return made


def _check(wanted: Mapping[str, Any]) -> None:
    gpus, pack = wanted.get("gpus", 0), wanted.get("pack", 1)
    if gpus != int(gpus):
        raise UserError(
            f"resources.gpus: {gpus}: Slurm gives whole GPUs; gpus: 1 and pack: "
            f"{max(2, round(1 / (gpus % 1)))} lets several runs share one"
        )
    if pack > 1 and wanted.get("nodes", 1) > 1:
        raise UserError(f"resources.pack: {pack} runs a job, and nodes: {wanted['nodes']}: choose")
    if pack > 1 and gpus > 1 and pack % gpus:
        raise UserError(f"resources.pack: {pack} runs cannot share {gpus:g} GPUs evenly")


def parameters(wanted: Mapping[str, Any], profile: Profile, name: str, code: str) -> dict[str, Any]:
    """What submitit is told about a job. A pure function: its batch script has a golden test.

    A run on several GPUs or nodes has a process for each GPU, and one for a node without GPUs.
    """
    gpus, pack = int(wanted.get("gpus", 0)), wanted.get("pack", 1)
    processes = max(1, gpus) if pack == 1 else 1
    given: dict[str, Any] = {
        "job_name": name,
        "time": math.ceil(60 * wanted.get("hours", 24)),
        "nodes": wanted.get("nodes", 1),
        "ntasks_per_node": processes,
        "array_parallelism": profile.throttle,
        "signal_delay_s": profile.signal_seconds,
        "stderr_to_stdout": True,
        "wckey": None,  # a cluster that knows no "submitit" would refuse it
        "setup": [*profile.setup, *_environment(code)],
    }
    # Since Slurm 22.05 srun no longer takes over what the batch job asks for.
    srun = ["--kill-on-bad-exit=1"] if processes * given["nodes"] > 1 else []
    if "cpus" in wanted:
        given["cpus_per_task"] = max(1, wanted["cpus"] // processes)
        srun.append(f"--cpus-per-task={given['cpus_per_task']}")
    given["srun_args"] = srun
    for key in ("partition", "account", "qos", "constraint", "exclude"):
        if getattr(profile, key) is not None:
            given[key] = getattr(profile, key)
    more: dict[str, Any] = {"hold": True, "requeue": True}
    if gpus:
        kind = f"{profile.gpu_type}:{gpus}" if profile.gpu_type else str(gpus)
        gres = profile.gpu_request == "gres"
        more["gres" if gres else "gpus-per-node"] = f"gpu:{kind}" if gres else kind
    if "mem" in wanted:
        more["mem"] = _memory(wanted["mem"])
    more |= {k: v for k, v in profile.options.items() if v is not False}
    given["additional_parameters"] = more
    return given


def _memory(text: str) -> str:
    """Slurm takes no fraction: 1.5G is 1536M."""
    factor = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}.get(text[-1], 1)
    return f"{math.ceil(factor * float(text.rstrip('KMGT')))}M" if "." in text else text


def _environment(code: str) -> list[str]:
    # Without -P Python would put the folder that the command was typed in before all others.
    lines = ["export PYTHONSAFEPATH=1"]
    if code:
        lines.append(f"export PYTHONPATH={shlex.quote(code)}${{PYTHONPATH:+:$PYTHONPATH}}")
    return lines


def submit(
    plan: Plan,
    runs: Sequence[Run],
    profile: Profile,
    code: Path | None,
    *,
    canary: bool,
    tracking: bool = True,
) -> tuple[list[Submission], list[str]]:
    """Submit runs, and let them go; returns the submissions and the ids of runs that found no room.

    All groups are taken or none. What is over the number of jobs that the cluster takes from a
    user is left for the next call.
    Errors: `UserError` with Slurm's own words when it refuses; `Unreachable` when it does not
    answer, and the next call has to look what it took.
    """
    unfit = re.search(r"[%:\\\x00-\x1f]", str(plan.outputs))
    if unfit:  # it would mean something to Slurm, in PYTHONPATH or in a batch script
        raise UserError(f"outputs: {str(plan.outputs)!r}: Slurm and Python misread {unfit[0]!r}")
    wanted = groups(runs, profile)
    largest = cluster.largest_array()
    room = _room(profile)
    made: list[Submission] = []
    left: list[str] = []
    for group in wanted:
        kept = group.tasks if room is None else group.tasks[:room]
        left += [run.id for task in group.tasks[len(kept) :] for run in task]
        if room is not None:
            room -= len(kept)
        if kept:
            kept = Group(group.resources, kept)
            new = _new(plan, kept, profile, code, largest, canary)
            made.append(replace(new, tracking=tracking))
    _test(made, profile)
    for submission in made:
        records.write(submission)
    try:
        for number, submission in enumerate(made):
            made[number] = _submit_chunks(submission, profile)
        for submission in made:
            advance(submission)
    except cluster.Refused as refused:
        _take_back(made)
        hint = "; max_submitted in the profile keeps below a limit of the cluster's"
        limit = "limit" in str(refused).lower()
        raise UserError(f"{_source(profile)}: {refused}{hint if limit else ''}") from None
    except cluster.NoAnswer as silent:
        # What was sent may have been taken all the same: the names of the jobs tell.
        raise Unreachable(
            f"Slurm did not answer: {silent}; nothing is lost: the same command finds what was "
            f"taken and carries on"
        ) from None
    return made, left


def _source(profile: Profile) -> str:
    return profile.file or "sbatch"


def _test(submissions: Sequence[Submission], profile: Profile) -> None:
    """Have Slurm look at a job of each kind before anything is written or queued."""
    for submission in submissions:
        wanted = submission.resources
        try:
            cluster.test(_script(submission, wanted, profile))
        except cluster.Refused as refused:
            if "configuration is not available" in str(refused) and _nodes_are_away(
                submission, profile
            ):
                continue
            told = ", ".join(f"{k}: {v}" for k, v in wanted.items())
            told = f" ({told})" if told else ""
            raise UserError(f"{_source(profile)}: {refused}{told}") from None


def _nodes_are_away(submission: Submission, profile: Profile) -> bool:
    """Whether not even the smallest job would be taken: then it is not what is asked for, and the
    jobs can wait for the nodes as sbatch lets them.
    """
    least = {"gpus": min(1, submission.resources.get("gpus", 0))}
    try:
        cluster.test(_script(submission, least, profile))
    except cluster.Refused:
        return True
    return False


def _script(submission: Submission, wanted: Mapping[str, Any], profile: Profile) -> str:
    """The batch script of a job that asks for some resources and does nothing."""
    executor = _executor(submission, wanted, submission.chunks[0].name, profile)
    return executor._make_submission_file_text("true", "")


def _room(profile: Profile) -> int | None:
    """How many more jobs the cluster takes from this user, None if it does not say."""
    limits = [n for n in (profile.max_submitted, cluster.submit_limit(profile.qos)) if n]
    if not limits:
        return None
    waiting = sum(job.active for job in cluster.queue([cluster.user()]).values())
    return max(0, min(limits) - waiting)


def _new(
    plan: Plan, group: Group, profile: Profile, code: Path | None, largest: int, canary: bool
) -> Submission:
    """A submission that nobody but us knows yet."""
    folder = records.new_folder(plan.folder)
    count = len(group.tasks)
    sizes = [min(largest, count - first) for first in range(0, count, largest)]
    tag = folder.name[-6:]
    # A % in a job's name would be replaced in paths, and names are shown in 8 columns.
    chunks = [
        Chunk(f"{plan.name[:60]}-{tag}-{n}", n * largest, size) for n, size in enumerate(sizes)
    ]
    return Submission(
        folder=folder, sweep=plan.name, user=cluster.user(), resources=dict(group.resources),
        tasks=[[run.id for run in task] for task in group.tasks], chunks=tuple(chunks),
        canary=canary and count > 1, code=str(code or ""),
        limits=Limits(profile.requeue.timeouts, profile.requeue.node_failures),
        signal_seconds=profile.signal_seconds,
    )  # fmt: skip


def _submit_chunks(submission: Submission, profile: Profile) -> Submission:
    """Hand all arrays of a submission to Slurm, and write down the id of each at once."""
    for number, chunk in enumerate(submission.chunks):
        submission = submission.with_chunk(number, job=_sbatch(submission, chunk, profile))
        records.write(submission)
    return submission


def _sbatch(submission: Submission, chunk: Chunk, profile: Profile) -> str:
    """Submit an array and return its id. Errors: `NoAnswer`, `Refused`."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = _executor(submission, submission.resources, chunk.name, profile)
    try:
        with quietly(), executor.batch():
            jobs = [executor.submit(task) for task in _tasks(submission, chunk)]
        return jobs[0].job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        raise cluster.no(cluster.words(str(error))) from None


@contextmanager
def quietly() -> Iterator[None]:
    """For submitit: in a clean environment, without what it prints and logs and then raises."""
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    with cluster.clean_environment(), redirect_stderr(io.StringIO()):
        yield


def _executor(
    submission: Submission, wanted: Mapping[str, Any], name: str, profile: Profile
) -> Any:
    from submitit import SlurmExecutor

    # A signal that comes before Python hears it must not end the job: it comes again, as SIGTERM.
    python = profile.python or shlex.quote(sys.executable)
    python = f'sh -c \'trap "" USR2; exec "$@"\' - {python}'
    executor = SlurmExecutor(submission.jobs_folder, max_num_timeout=TIMEOUTS, python=python)
    executor.update_parameters(**parameters(wanted, profile, name, submission.code))
    return executor


def _tasks(submission: Submission, chunk: Chunk) -> list[Any]:
    from densevit.sweep.launch.slurm.job import Task

    runs = submission.folder.parents[3] / "runs"
    return [
        Task(tuple(str(runs / run) for run in task))
        for task in submission.tasks[chunk.first : chunk.first + chunk.count]
    ]


def _take_back(submissions: Sequence[Submission]) -> None:
    """Undo what was submitted before Slurm refused the rest; none of it has started."""
    for held in submissions:
        submission = records.read(held.folder)
        cluster.cancel([chunk.job for chunk in submission.chunks if chunk.job])
        for number in range(len(submission.chunks)):
            submission = submission.with_chunk(number, job="", void=True)
        records.write(submission)


def settle(submissions: Iterable[Submission], jobs: Mapping[str, cluster.Job]) -> bool:
    """Take over what an earlier command has left in the middle; whether there was anything.

    A job whose id was never written is found by its name, gets what it needs to start, and its
    id is written. A name that Slurm does not know was never taken.
    """
    by_name = {job.name: job.id.partition("_")[0] for job in jobs.values()}
    found = False
    for submission in submissions:
        for number, chunk in enumerate(submission.chunks):
            if chunk.job or chunk.void:
                continue
            found = True
            if chunk.name in by_name:
                submission = submission.with_chunk(number, job=by_name[chunk.name])
                _complete(submission, submission.chunks[number])
            else:
                submission = submission.with_chunk(number, void=True)
            records.write(submission)
        with suppress(cluster.Refused):  # as of jobs that an administrator holds
            mine = {id: job for id, job in jobs.items() if submission.owns(id, job.name)}
            found |= advance(submission, mine)
    return found


def _complete(submission: Submission, chunk: Chunk) -> None:
    """Write what submitit would have written after sbatch: the task of each element."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    minutes = math.ceil(60 * submission.resources.get("hours", 24))
    for number, task in enumerate(_tasks(submission, chunk), chunk.first):
        paths = JobPaths(submission.jobs_folder, chunk.element(number))
        if not paths.submitted_pickle.exists():
            paths.folder.mkdir(parents=True, exist_ok=True)
            delayed = DelayedSubmission(task)
            delayed.set_timeout(minutes, TIMEOUTS)
            delayed.dump(paths.submitted_pickle)
