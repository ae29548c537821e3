"""The canary: the first job of a submission starts alone; the others wait for its first steps.

A mistake in the code then costs one job instead of three hundred. The canary's own job releases the
others; a later command does it if that job could not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densevit.launch.slurm import commands
from densevit.launch.slurm.submissions import Submission
from densevit.utils.files import write_atomic

STEPS = 20  # of training, after which a run counts as working


def advance(submission: Submission, jobs: Mapping[str, commands.Job] | None = None) -> bool:
    """Release or cancel the held jobs of a submission; return whether there was anything to do.

    Without a canary, or when it has passed, all are released; else the canary alone. When it has
    failed, the others are cancelled. `jobs` is the queue; without it, all jobs count as held.
    """
    begun, released = submission.folder / "canary-released", submission.folder / "released"
    if released.exists():  # somebody else holds the jobs that are held since then
        return False
    elements = list(submission.elements())
    on_hold = [e for e in elements if jobs is None or (e in jobs and jobs[e].held)]
    if not on_hold:
        return False
    result = submission.canary_result()
    if not submission.canary or (result is not None and result["passed"]):
        commands.release(_shortest(submission, on_hold))
        write_atomic(released, "")
    elif result is not None:
        commands.cancel(_shortest(submission, on_hold))
    elif elements[0] in on_hold:
        if begun.exists():  # somebody else holds the canary, and so all others
            return False
        commands.release(elements[:1])
        write_atomic(begun, "")
    elif jobs is not None and not (elements[0] in jobs and jobs[elements[0]].active):
        # It was cancelled or died silently: the next submission has its own canary.
        commands.cancel(_shortest(submission, on_hold))
    else:
        return False
    return True


def _shortest(submission: Submission, elements: Sequence[str]) -> list[str]:
    """Return the ids, with a whole array by its own id: one number instead of a thousand."""
    requested, ids = set(elements), []
    for chunk in submission.chunks:
        own_elements = [chunk.element(t) for t in range(chunk.first, chunk.first + chunk.count)]
        inside = [element for element in own_elements if element in requested]
        ids += [chunk.job] if len(inside) == len(own_elements) and inside else inside
    return ids
