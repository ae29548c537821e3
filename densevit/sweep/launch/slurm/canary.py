"""Who may start: the first job of a submission goes ahead, and the others wait for its first steps.

A mistake in the code then burns one job instead of three hundred. The canary's own job lets the
others go; a later command does it where that job could not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densevit.rundir import write_atomic
from densevit.sweep.launch.slurm import cluster
from densevit.sweep.launch.slurm.records import Submission

STEPS = 20  # of training, after which a run is taken to work


def advance(submission: Submission, jobs: Mapping[str, cluster.Job] | None = None) -> bool:
    """Let go what may start: all without a canary or when it has passed, else the canary alone;
    take the others out of the queue when it has failed. Whether there was anything to do.

    `jobs` is what the queue says; without it everything is taken to be on hold.
    """
    released = submission.folder / "released"
    if released.exists():  # what is on hold since then was put there by somebody else
        return False
    elements = list(submission.elements())
    held = [e for e in elements if jobs is None or (e in jobs and jobs[e].held)]
    if not held:
        return False
    word = submission.canary_word()
    if not submission.canary or (word is not None and word["passed"]):
        cluster.release(_shortest(submission, held))
        write_atomic(released, "")
    elif word is not None:
        cluster.cancel(_shortest(submission, held))
    elif elements[0] in held:
        cluster.release(elements[:1])
    elif jobs is not None and not (elements[0] in jobs and jobs[elements[0]].active):
        # It was cancelled, or died without a word: the next submission has a canary of its own.
        cluster.cancel(_shortest(submission, held))
    else:
        return False
    return True


def _shortest(submission: Submission, elements: Sequence[str]) -> list[str]:
    """Whole arrays by their own id: one number instead of a thousand."""
    wanted, ids = set(elements), []
    for chunk in submission.chunks:
        mine = [chunk.element(t) for t in range(chunk.first, chunk.first + chunk.count)]
        inside = [element for element in mine if element in wanted]
        ids += [chunk.job] if len(inside) == len(mine) and inside else inside
    return ids
