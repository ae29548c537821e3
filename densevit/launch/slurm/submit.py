"""Submit runs as jobs: grouped by resources, one array per group and chunk, all or none.

Jobs are submitted on hold and released when their ids are on disk. A command that dies at any
moment leaves held jobs with known names, and the next command takes them over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from densevit.launch.slurm import commands, limits
from densevit.launch.slurm import submissions as records
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.canary import advance
from densevit.launch.slurm.groups import Group, groups
from densevit.launch.slurm.profile import Profile
from densevit.launch.slurm.sbatch import TIMEOUTS, count_tasks, job_script, make_executor, quietly
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import Unreachable, UserError


def submit(
    plan: Plan,
    runs: Sequence[Run],
    profile: Profile,
    code: Path | None,
    *,
    canary: bool,
    tracking: bool = True,
) -> tuple[list[Submission], list[str]]:
    """Submit runs and release them; return the submissions and the ids of runs that are left.

    All groups are submitted or none. Runs beyond the number of jobs that the cluster accepts from a
    user are left for the next call.
    Errors: `UserError` with Slurm's message if it refuses; `Unreachable` if it does not answer: the
    next call then finds out what it has accepted.
    """
    _check_path(plan.outputs, profile)
    largest, room = limits.largest_array(), _room(profile)
    made: list[Submission] = []
    left: list[str] = []
    for group in groups(runs, profile):
        tasks = group.tasks if room is None else group.tasks[:room]
        left += [run.id for task in group.tasks[len(tasks) :] for run in task]
        if room is not None:
            room -= len(tasks)
        if tasks:
            group = Group(group.resources, tasks)
            new = _new(plan, group, profile, code, largest, canary)
            made.append(replace(new, tracking=tracking))
    _test(made, profile)
    for submission in made:
        records.write(submission)
    try:
        for number, submission in enumerate(made):
            made[number] = _submit_chunks(submission, profile)
        for submission in made:
            advance(submission)
    except commands.Refused as refused:
        _take_back(made)
        hint = "; set max_submitted in the profile to stay below the limit of the cluster"
        hint = hint if "limit" in str(refused).lower() else ""
        raise UserError(f"{_source(profile)}: {refused}{hint}") from None
    except commands.NoAnswer as silent:
        # Slurm may have accepted the jobs all the same; their names will show it.
        raise Unreachable(
            f"Slurm did not answer: {silent}; the same command finds the jobs that it has "
            f"accepted, and submits the others"
        ) from None
    return made, left


def _check_path(outputs: Path, profile: Profile) -> None:
    comma = "," if profile.container else ""  # separates the folders of a container
    unfit = re.search(rf"[%:{comma}\\\x00-\x1f]", str(outputs))
    if unfit:  # special to Slurm, in PYTHONPATH or in a batch script
        raise UserError(f"outputs: {str(outputs)!r}: Slurm and Python misread {unfit[0]!r} in a "
                        f"path; choose another folder")  # fmt: skip


def _source(profile: Profile) -> str:
    return profile.file or "sbatch"


def _test(submissions: Sequence[Submission], profile: Profile) -> None:
    """Have Slurm test one job per submission before anything is written or queued."""
    for submission in submissions:
        request = submission.resources
        try:
            commands.test(job_script(submission, request, profile))
        except commands.Refused as refused:
            if "configuration is not available" in str(refused) and _nodes_are_away(
                submission, profile
            ):
                continue
            text = ", ".join(f"{k}: {v}" for k, v in request.items())
            text = f" ({text})" if text else ""
            raise UserError(f"{_source(profile)}: {refused}{text}") from None


def _nodes_are_away(submission: Submission, profile: Profile) -> bool:
    """Return whether Slurm refuses even the smallest job.

    The reason is then not the request, and the jobs can wait for the nodes as sbatch allows.
    """
    least = {"gpus": min(1, submission.resources.get("gpus", 0))}
    try:
        commands.test(job_script(submission, least, profile))
    except commands.Refused:
        return True
    return False


def _room(profile: Profile) -> int | None:
    """Return how many more jobs the cluster accepts from this user, None if unknown."""
    allowed = [n for n in (profile.max_submitted, limits.submit_limit(profile.qos)) if n]
    if not allowed:
        return None
    waiting = sum(job.active for job in commands.queue([commands.user()]).values())
    return max(0, min(allowed) - waiting)


def _new(
    plan: Plan, group: Group, profile: Profile, code: Path | None, largest: int, canary: bool
) -> Submission:
    """Return a new submission, not yet written or sent to Slurm."""
    folder = records.new_folder(plan.folder)
    count = len(group.tasks)
    sizes = [min(largest, count - first) for first in range(0, count, largest)]
    tag = folder.name[-6:]
    # Slurm would replace a % of a job's name in paths, and it shows 8 columns of a name.
    chunks = [
        Chunk(f"{plan.name[:60]}-{tag}-{n}", n * largest, size) for n, size in enumerate(sizes)
    ]
    return Submission(
        folder=folder, sweep=plan.name, user=commands.user(), resources=dict(group.resources),
        tasks=[[run.id for run in task] for task in group.tasks], chunks=tuple(chunks),
        canary=canary and count > 1, code=str(code or ""),
        limits=Limits(profile.requeue.timeouts, profile.requeue.node_failures),
        signal_seconds=profile.signal_seconds,
    )  # fmt: skip


def _submit_chunks(submission: Submission, profile: Profile) -> Submission:
    """Submit all arrays of a submission, and record the id of each at once."""
    for number, chunk in enumerate(submission.chunks):
        submission = submission.with_chunk(number, job=_sbatch(submission, chunk, profile))
        records.write(submission)
    return submission


def _sbatch(submission: Submission, chunk: Chunk, profile: Profile) -> str:
    """Submit an array and return its id. Errors: `NoAnswer`, `Refused`."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = make_executor(submission, submission.resources, chunk.name, profile)
    try:
        with quietly(), executor.batch():
            jobs = [executor.submit(task) for task in count_tasks(submission, chunk)]
        return str(jobs[0].job_id).partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        raise commands.failure_of(commands.error_text(str(error))) from None


def _take_back(submissions: Sequence[Submission]) -> None:
    """Cancel what was submitted before Slurm refused the rest; none of it has started."""
    for submission in submissions:
        submission = records.read(submission.folder)
        commands.cancel([chunk.job for chunk in submission.chunks if chunk.job])
        for number in range(len(submission.chunks)):
            submission = submission.with_chunk(number, job="", void=True)
        records.write(submission)


def settle(submissions: Iterable[Submission], jobs: Mapping[str, commands.Job]) -> bool:
    """Take over the jobs of a command that died while submitting; return whether there were any.

    A job whose id was never recorded is found by its name; it gets its task files, and its id is
    recorded. A job whose name Slurm does not know was never accepted.
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
        with suppress(commands.Refused):  # e.g. of jobs that an administrator holds
            mine = {id: job for id, job in jobs.items() if submission.owns(id, job.name)}
            found |= advance(submission, mine)
    return found


def _complete(submission: Submission, chunk: Chunk) -> None:
    """Write the task of each element, as submitit would have done after sbatch."""
    from submitit.core.utils import DelayedSubmission, JobPaths

    minutes = math.ceil(60 * submission.resources.get("hours", records.DEFAULT_HOURS))
    for number, task in enumerate(count_tasks(submission, chunk), chunk.first):
        paths = JobPaths(submission.jobs_folder, chunk.element(number))
        if not paths.submitted_pickle.exists():
            paths.folder.mkdir(parents=True, exist_ok=True)
            delayed = DelayedSubmission(task)
            delayed.set_timeout(minutes, TIMEOUTS)
            delayed.dump(paths.submitted_pickle)
