"""Calls of Slurm's commands: each function calls one of them, with a time limit.

A controller that is down makes squeue and sbatch hang rather than fail.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from densevit.launch.slurm import relay
from densevit.utils.errors import Unreachable, UserError

PATIENCE = 30.0  # seconds
ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT",
}  # fmt: skip


class NoAnswer(Unreachable):
    """Slurm gave no valid answer: nothing follows about any job."""


class Refused(NoAnswer):
    """Slurm rejected the request."""


# Messages of Slurm's commands when its daemons do not answer, as opposed to a refusal.
_SILENCE = re.compile(
    r"unable to (contact|connect|establish)|connect failure|connection (refused|reset)|"
    r"timed out|communication (shutdown|connection)|zero bytes were transmitted|"
    r"unexpected message received|protocol authentication error|not responding|shutting down",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array, as squeue or sacct reports it.

    `state` is one word, e.g. PENDING or NODE_FAIL; `reason` says why the job waits.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    name: str = ""

    @property
    def active(self) -> bool:
        """Return whether the job runs or waits to run."""
        return self.state in ACTIVE

    @property
    def held(self) -> bool:
        """Return whether the job waits for `scontrol release`."""
        return self.state == "PENDING" and self.reason.startswith("JobHeld")


def require() -> None:
    """Check that Slurm's commands are there. Errors: `UserError` if one is missing."""
    for program in ("sbatch", "squeue", "scontrol", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"launcher: slurm: there is no {program} on the PATH; run this where jobs are "
                f"submitted, or choose --launcher local"
            )


def user() -> str:
    """Return the owner of our jobs, not $USER, which may be set to anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def call(command: Sequence[str], patience: float = PATIENCE, given: str = "") -> str:
    """Return the output of a Slurm command, with `given` as its input.

    Errors: `NoAnswer` or `Refused` with Slurm's message.
    """
    try:
        if relay.available() and shutil.which(command[0]) is None:
            done = relay.run(command, patience)
        else:
            done = subprocess.run(  # noqa: S603  (a list, no shell)
                command, input=given, capture_output=True, text=True, errors="replace",
                timeout=patience, env=clean(), check=False,
            )  # fmt: skip
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} is not on the PATH") from None
    except OSError as error:
        raise NoAnswer(f"{command[0]}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {patience:.0f} s") from None
    if done.returncode != 0:
        message = error_text(done.stderr or done.stdout)
        raise failure_of(message or f"{command[0]} ended with code {done.returncode}")
    return done.stdout


def failure_of(message: str) -> NoAnswer:
    """Return the exception for an error message: `NoAnswer` if the daemons are silent."""
    return NoAnswer(message) if _SILENCE.search(message) else Refused(message)


def error_text(text: str) -> str:
    """Return Slurm's messages in one line, without duplicates and program names."""
    lines = (re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))


def test(script: str) -> None:
    """Test whether Slurm accepts a batch script. Errors: `Refused` with Slurm's message.

    For a held job, Slurm does this only when the job is released.
    """
    call(["sbatch", "--test-only"], given=script)


def clean() -> dict[str, str]:
    """Return this process's environment without the variables of a job around it.

    An inherited SLURM_CPU_BIND would bind our jobs, an SBATCH_PARTITION would move them whatever
    the profile says, an SQUEUE_STATES would hide them. SLURM_CONF and SLURM_CLUSTERS stay.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    removed = (
        "SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SACCT_", "SINFO_",
        "SUBMITIT_", "PMI_", "PMIX_",
    )  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if k in kept or not k.startswith(removed)}
    # Array indices in full: by default squeue cuts them at 64 characters.
    return {**clean, "SLURM_BITSTR_LEN": "0"}


@contextmanager
def clean_environment() -> Iterator[None]:
    """Use the environment of `clean`, for a library that calls Slurm's commands itself."""
    before, cleaned = dict(os.environ), clean()
    os.environ.clear()
    os.environ.update(cleaned)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def queue(users: Iterable[str]) -> dict[str, Job]:
    """Return all jobs of some users that squeue knows, by id.

    They wait or run, or have ended some minutes ago. An array element's id is ARRAY_INDEX.
    """
    form = "%F|%K|%A|%T|%r|%N|%j"
    names = ",".join(sorted(users))
    # --all: also partitions that are hidden from this user
    options = ["--all", "--array", "--states=all", f"--user={names}"]
    text = call(["squeue", "--noheader", *options, "-o", form])
    return {job.id: job for job in map(_queue_line, text.splitlines()) if job is not None}


def _queue_line(line: str) -> Job | None:
    parts = line.split("|", 6)
    if len(parts) != 7:
        return None
    array, index, job, state, reason, nodes, name = parts
    return Job(f"{array}_{index}" if index.isdecimal() else job, state, reason, nodes, name)


def accounts(ids: Iterable[str]) -> dict[str, Job]:
    """Return how jobs ended, for all elements of some arrays; the last attempt counts.

    Errors: `NoAnswer`, also if the cluster has no accounting.
    """
    arrays = ",".join(sorted({id.partition("_")[0] for id in ids}))
    fields = "JobID,State,NodeList"
    text = call(["sacct", "--noheader", "--parsable2", "-X", "-j", arrays, "-o", fields])
    found = {}
    for line in text.splitlines():
        id, state, nodes = (*line.split("|"), "", "")[:3]
        for one in expand_ids(id):
            # "CANCELLED by 1000" names a user
            name = state.split()[0] if state else ""
            found[one] = Job(one, name, state.removeprefix(name).strip(), nodes)
    return found


def expand_ids(text: str) -> list[str]:
    """Expand `12`, `12_3`, `12_[2-4,7%5]` and `12_[0-6:2]` to single ids; skip truncated parts."""
    array, _, rest = text.partition("_")
    if not rest.startswith("["):
        return [text]
    ids = []
    for part in rest.strip("[]").partition("%")[0].split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last, step = int(found[1]), int(found[2] or found[1]), int(found[3] or 1)
            ids += [f"{array}_{n}" for n in range(first, last + 1, max(step, 1))]
    return ids


def last_end(job: str) -> str:
    """Return the final state of a job's previous attempt, e.g. NODE_FAIL; empty if unknown."""
    try:
        text = call(["sacct", "--noheader", "--parsable2", "-X", "--duplicates", "-j", job,
                     "-o", "State"], patience=10)  # fmt: skip
    except NoAnswer:
        return ""
    states = [line.split()[0] for line in text.splitlines() if line.strip()]
    ended = [state for state in states if state not in ACTIVE - {"REQUEUED"}]
    return ended[-1] if ended else ""


def release(ids: Sequence[str]) -> None:
    """Release held jobs or array elements."""
    if ids:
        call(["scontrol", "release", ",".join(ids)])


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs or array elements; those that have ended are no error."""
    for start in range(0, len(ids), 500):
        call(["scancel", "--quiet", *ids[start : start + 500]])


def requeue(job: str) -> None:
    call(["scontrol", "requeue", job])


def address(node: str) -> str:
    """Return the address of a node: its name if that resolves, else Slurm's NodeAddr."""
    try:
        socket.gethostbyname(node)
    except OSError:
        with suppress(NoAnswer):
            text = call(["scontrol", "--oneliner", "show", "node", node], patience=10)
            found = re.search(r"NodeAddr=(\S+)", text)
            return found[1] if found else node
    return node


def described(job: str) -> dict[str, str]:
    """Return the fields of `scontrol show job`."""
    text = call(["scontrol", "--oneliner", "show", "job", job], patience=10)
    return dict(re.findall(r"(\w+)=(\S*)", text))
