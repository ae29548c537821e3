"""A sweep on Slurm: submit what is missing, say what there is, and stay to watch if asked to."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from densevit.errors import EXIT_CARRY_ON, Unreachable, UserError
from densevit.sweep import snapshot
from densevit.sweep.apply import Work, check, decide, prepare
from densevit.sweep.launch.slurm import cluster, records, submit
from densevit.sweep.launch.slurm.profile import Profile, find_profile
from densevit.sweep.outcome import counted, finish_sweep, mirror
from densevit.sweep.plan import Plan
from densevit.sweep.show import print_dry_run, say, teller, typed
from densevit.sweep.state import WAITS_IN_VAIN, Observed, observe


def run_on_slurm(
    plan: Plan, options: argparse.Namespace, only: Collection[str] | None = None
) -> int:
    """Submit the runs that are not finished, running or queued; `only` those of some ids.

    Returns the exit code: 0 all finished or in the queue, or with --watch 0 all finished and 1 some
    failed; 75 when the watching was stopped, which stops no job.
    """
    cluster.require()
    profile = find_profile(options.profile or plan.spec.profile, plan.spec.file)
    if getattr(options, "dry_run", False):
        work = _work(plan, observe(plan), only)
        print_dry_run(plan, work, _groups(plan, work, profile))
        return 0
    try:
        left, observed = _apply(plan, profile, options, only)
    except cluster.NoAnswer as silent:
        raise Unreachable(f"Slurm does not answer: {silent}; the same command carries on") from None
    if all(standing.state == "finished" for standing in observed.runs.values()):
        with mirror(plan, options.no_tracking):
            return finish_sweep(plan, options.no_tracking)
    if not options.watch:
        say(f"look: {typed(plan, 'status')}    stop: {typed(plan, 'cancel')}")
        return 0
    try:
        with mirror(plan, options.no_tracking, starting=True):
            _stay(plan, profile, options, left)
            return finish_sweep(plan, options.no_tracking)
    except KeyboardInterrupt:
        say("no longer watched; the jobs go on, and the same command watches them again")
        return EXIT_CARRY_ON


def _apply(
    plan: Plan, profile: Profile, options: argparse.Namespace, only: Collection[str] | None
) -> tuple[list[str], Observed]:
    """Make the queue hold what the plan wants; returns the ids of runs that found no room, and
    where all runs stand.
    """
    with records.submitting(plan.outputs):
        submissions = records.read_all(plan.outputs)
        _settle(submissions)
        submissions = records.read_all(plan.outputs)
        observed = observe(plan, submissions)
        work = _work(plan, observed, only)
        if observed.silent:
            say(f"Slurm does not answer: {observed.silent}; {len(work.unknown)} runs are unknown")
        if not work.to_run:
            say(f"{plan.name}: {counted(plan, work)}")
            return [], observed
        _groups(plan, work, profile)  # what cannot be asked for is told before all else
        check(plan, work, here=False)
        prepare(plan, work)
        say(f"{plan.name}: {counted(plan, work)}")
        code = None if options.live_code else snapshot.take(plan.outputs)
        made, left = submit.submit(
            plan, work.to_run, profile, code,
            canary=not options.no_canary, tracking=not options.no_tracking,
        )  # fmt: skip
    for submission in made:
        _tell(submission)
    if left:
        say(f"{len(left)} runs wait: the cluster takes no more jobs from you now; the same command "
            f"submits them later")  # fmt: skip
    return left, observe(plan)


def _groups(plan: Plan, work: Work, profile: Profile) -> list[submit.Group]:
    try:
        return submit.groups(work.to_run, profile)
    except UserError as error:
        raise UserError(f"{plan.spec.file}: {error}") from None


def _work(plan: Plan, observed: Observed, only: Collection[str] | None) -> Work:
    work = decide(plan, observed, "slurm")
    if only is None:
        return work
    return replace(work, to_run=tuple(run for run in work.to_run if run.id in only))


def _settle(submissions: list[records.Submission]) -> None:
    """Take over what an earlier command has left in the middle."""
    mine = [submission for submission in submissions if submission.user == cluster.user()]
    if mine and submit.settle(mine, cluster.queue([cluster.user()])):
        say("found jobs that an earlier command had left in the middle, and took them over")


def _tell(submission: records.Submission) -> None:
    runs = sum(map(len, submission.tasks))
    jobs = ", ".join(chunk.job for chunk in submission.chunks)
    wanted = ", ".join(f"{k} {v}" for k, v in submission.resources.items()) or "no resources named"
    note = "; the others wait for the first steps of the first" if submission.canary else ""
    say(f"submitted {runs} runs as job {jobs} ({wanted}){note}")


def _stay(
    plan: Plan,
    profile: Profile,
    options: argparse.Namespace,
    left: list[str],
) -> None:
    """Show where the runs stand until none runs or waits; submit those that found no room before.

    What fails or is cancelled meanwhile is not started again: that is for the next command.
    """
    tell = teller(plan)
    while True:
        observed = observe(plan)
        tell(observed)
        states = {standing.state for standing in observed.runs.values()}
        if not left and states.isdisjoint({"running", "queued", "unknown"}):
            return
        time.sleep(options.every)
        with suppress(Unreachable):  # it is asked again at the next look
            if left:
                left = _later(plan, profile, options, left)
            elif _orphaned(observed):
                with records.submitting(plan.outputs):
                    _settle(records.read_all(plan.outputs))


def _later(plan: Plan, profile: Profile, options: argparse.Namespace, left: list[str]) -> list[str]:
    """Submit what found no room; what Slurm refuses then is left, and the watch goes on."""
    try:
        return _apply(plan, profile, options, left)[0]
    except UserError as error:
        say(f"{len(left)} runs are not submitted: {error}")
        return []


def _orphaned(observed: Observed) -> bool:
    """Whether runs wait for a canary that has said its word, or has no job any more."""
    return any(
        standing.state == "queued" and standing.why.startswith(WAITS_IN_VAIN)
        for standing in observed.runs.values()
    )
