"""The Slurm launcher: submit runs, observe their jobs, cancel them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from densevit.launch import code_snapshot
from densevit.launch.code_files import remarks
from densevit.launch.foreground import Watch
from densevit.launch.launcher import JobQueue, Launcher, LaunchOptions
from densevit.launch.run_state import Observed
from densevit.launch.slurm import commands, groups, limits, submissions, submit
from densevit.launch.slurm.observe import cancel, changed_jobs, observe, queued_jobs
from densevit.launch.slurm.probe_job import cost_setting
from densevit.launch.slurm.profile import Profile, usable_profile
from densevit.launch.slurm.state import WAITS_IN_VAIN
from densevit.runs.provenance import git_state
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.texts import resources_text
from densevit.utils.console import count, say
from densevit.utils.errors import Unreachable, UserError


def _check(plan: Plan, runs: Sequence[Run], options: LaunchOptions) -> list[str]:
    """Check that Slurm can be used and can provide the runs' resources; return a line a group."""
    profile = usable_profile(plan, options)
    try:
        found = groups.groups(runs, profile)
    except UserError as error:
        raise UserError(f"{plan.spec.file}: {error}") from None
    _check_hours(found, profile, plan.spec.file)
    return [
        f"{count(sum(map(len, group.tasks)), 'run')} in {count(len(group.tasks), 'job')} "
        f"({resources_text(group.resources)})"
        for group in found
    ] + _code_remarks(runs, options)


def _check_hours(found: Sequence[groups.Group], profile: Profile, file: Path) -> None:
    """Refuse a job that is longer than its partition allows: Slurm would queue it for ever."""
    longest = limits.longest_hours(profile.partition) if found else None
    for group in found:
        hours = group.resources.get("hours", submissions.DEFAULT_HOURS)
        if longest is not None and hours > longest:
            name = profile.partition
            where = f"partition {name}" if name else "the default partition"
            raise UserError(
                f"{file}: resources.hours: {hours:g} is more than the {longest:g} hours that "
                f"{where} allows; a run that needs longer resumes in a new job"
            )


def _launch(plan: Plan, runs: tuple[Run, ...], options: LaunchOptions, watch: Watch) -> list[str]:
    """Submit runs; return the ids of those beyond the number of jobs that the cluster accepts."""
    profile = usable_profile(plan, options)
    for line in _code_remarks(runs, options):
        say(line)
    code = None if options.live_code else code_snapshot.take(plan.outputs, diff=_diff(runs))
    made, left = submit.submit(
        plan, runs, profile, code, canary=options.canary, tracking=options.tracking
    )
    for submission in made:
        _print_submission(submission)
    if left:
        say(f"left for later: {count(len(left), 'run')}; you have as many jobs as the cluster "
            f"allows, and the same command submits the rest")  # fmt: skip
    return left


def _diff(runs: Sequence[Run]) -> bool:
    """Return True if a run records the differences of the code from its commit."""
    return any(run.config.git_diff for run in runs)


def _code_remarks(runs: Sequence[Run], options: LaunchOptions) -> list[str]:
    """Return what there is to say about the files that jobs get, before they get them."""
    if options.live_code:
        return []
    return remarks(code_snapshot.PACKAGE, git_state(diff=_diff(runs))["git_diff"])


@contextmanager
def _submitting(plan: Plan, options: LaunchOptions) -> Iterator[None]:
    profile = usable_profile(plan, options)  # before the lock creates the outputs folder
    try:
        with submissions.submitting(plan.outputs):
            _take_over(plan.outputs)
            _replace_changed(plan, profile, options)
            yield
    except commands.NoAnswer as silent:
        raise Unreachable(
            f"Slurm does not answer: {silent}; run the same command again later"
        ) from None


def _take_over(outputs: Path) -> None:
    """Take over jobs of an earlier command that died while submitting."""
    mine = [made for made in submissions.read_all(outputs) if made.user == commands.user()]
    if mine and submit.settle(mine, commands.queue([commands.user()])):
        say("took over the jobs of an interrupted command")


def _replace_changed(plan: Plan, profile: Profile, options: LaunchOptions) -> None:
    """Name the waiting jobs whose resources have changed in the file; with `replace`, cancel them:
    their runs are then submitted anew."""
    changed = changed_jobs(plan, profile)
    if not changed:
        return
    jobs, changes = list(changed), "; ".join(sorted(set(changed.values())))
    if options.replace:
        _check(plan, plan.runs, options)
        cancel(jobs)
        say(f"cancelled {count(len(jobs), 'waiting job')} with the former resources ({changes})")
    else:
        say(f"{count(len(jobs), 'waiting job')} of this sweep: resources have changed in the file "
            f"({changes}) and not in the queue; --replace submits them anew")  # fmt: skip


def _attend(plan: Plan, observed: Observed) -> None:
    """Release or cancel runs that wait for a canary whose result is known or whose job is gone."""
    states = observed.runs.values()
    if any(s.state == "queued" and s.why.startswith(WAITS_IN_VAIN) for s in states):
        with submissions.submitting(plan.outputs):
            _take_over(plan.outputs)


def _print_submission(submission: submissions.Submission) -> None:
    runs = count(sum(map(len, submission.tasks)), "run")
    jobs = ", ".join(chunk.job for chunk in submission.chunks)
    note = "; the others wait for the first steps of the first" if submission.canary else ""
    say(f"submitted {runs} as job {jobs} ({resources_text(submission.resources)}){note}")


SLURM = Launcher(
    "slurm", _launch, foreground=False, check=_check, here=lambda plan: False,
    cost_setting=cost_setting, profiles=True,
    jobs=JobQueue(_submitting, observe, queued_jobs, cancel, _attend),
)  # fmt: skip
