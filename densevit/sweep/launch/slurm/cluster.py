"""What Slurm says and does: each function is one call of one of its commands, with a time limit.

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

from densevit.errors import Unreachable, UserError

PATIENCE = 30.0  # seconds
ACTIVE = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT",
}  # fmt: skip


class NoAnswer(Unreachable):
    """Slurm did not answer, or not as it should: nothing follows about any job."""


class Refused(NoAnswer):
    """Slurm has answered: it does not do what it was asked to."""


# Words of Slurm's commands when its daemons are not there, and not when they say no.
_SILENCE = re.compile(
    r"unable to (contact|connect|establish)|connect failure|connection (refused|reset)|"
    r"timed out|communication (shutdown|connection)|zero bytes were transmitted|"
    r"unexpected message received|protocol authentication error|not responding|shutting down",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Job:
    """A job, or an element of an array, as squeue or sacct tells it.

    `state` is one word as PENDING or NODE_FAIL; `reason` says why it waits.
    """

    id: str
    state: str
    reason: str = ""
    nodes: str = ""
    name: str = ""

    @property
    def active(self) -> bool:
        """Whether it runs, or waits to."""
        return self.state in ACTIVE

    @property
    def held(self) -> bool:
        """Whether it waits for `scontrol release`."""
        return self.state == "PENDING" and self.reason.startswith("JobHeld")


def require() -> None:
    """Errors: `UserError` where there is no Slurm."""
    for program in ("sbatch", "squeue", "scontrol", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"launcher: slurm: there is no {program} on the PATH; run this where jobs are "
                f"submitted, or choose --launcher local"
            )


def user() -> str:
    """Whose jobs ours are: not what $USER says, which may be anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def call(command: Sequence[str], patience: float = PATIENCE, given: str = "") -> str:
    """What a command of Slurm's prints, with `given` as its input.

    Errors: `NoAnswer` or `Refused` with its own words.
    """
    try:
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
        said = words(done.stderr or done.stdout)
        raise no(said or f"{command[0]} ended with code {done.returncode}")
    return done.stdout


def no(said: str) -> NoAnswer:
    """The exception for what Slurm said: silence is told as an error as well."""
    return NoAnswer(said) if _SILENCE.search(said) else Refused(said)


def words(text: str) -> str:
    """What Slurm says in one line, each thing once and without the name of its program."""
    lines = (re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if line))


def test(script: str) -> None:
    """Ask whether a batch script would be taken. Errors: `Refused` with Slurm's words.

    A job on hold is looked at when it is let go, and not before.
    """
    call(["sbatch", "--test-only"], given=script)


def clean() -> dict[str, str]:
    """This process's environment without what a job around it has left there.

    An inherited SLURM_CPU_BIND would bind our jobs, an SBATCH_PARTITION move them whatever the
    profile says, an SQUEUE_STATES hide them; where the cluster is configured stays.
    """
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    left_out = (
        "SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SACCT_", "SINFO_",
        "SUBMITIT_", "PMI_", "PMIX_",
    )  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if k in kept or not k.startswith(left_out)}
    # Ranges of array indices in full: they are cut at 64 characters otherwise.
    return {**clean, "SLURM_BITSTR_LEN": "0"}


@contextmanager
def clean_environment() -> Iterator[None]:
    """The same for a library that starts Slurm's commands itself."""
    before, wanted = dict(os.environ), clean()
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def queue(users: Iterable[str]) -> dict[str, Job]:
    """All jobs of some users that squeue knows: those that wait or run, and for some minutes those
    that have ended. Array elements are told one by one, by ARRAY_INDEX.
    """
    form = "%F|%K|%A|%T|%r|%N|%j"
    named = ",".join(sorted(users))
    # --all: also of partitions that are hidden from this user
    wanted = ["--all", "--array", "--states=all", f"--user={named}"]
    text = call(["squeue", "--noheader", *wanted, "-o", form])
    return {job.id: job for job in map(_queue_line, text.splitlines()) if job is not None}


def _queue_line(line: str) -> Job | None:
    parts = line.split("|", 6)
    if len(parts) != 7:
        return None
    array, index, job, state, reason, nodes, name = parts
    return Job(f"{array}_{index}" if index.isdecimal() else job, state, reason, nodes, name)


def accounts(ids: Iterable[str]) -> dict[str, Job]:
    """How jobs ended, of all elements of some arrays; their last start counts.

    Errors: `NoAnswer`, also where the cluster keeps no accounts.
    """
    wanted = ",".join(sorted({id.partition("_")[0] for id in ids}))
    fields = "JobID,State,NodeList"
    text = call(["sacct", "--noheader", "--parsable2", "-X", "-j", wanted, "-o", fields])
    found = {}
    for line in text.splitlines():
        id, state, nodes = (*line.split("|"), "", "")[:3]
        for one in expand_ids(id):
            # "CANCELLED by 1000" says who
            word = state.split()[0] if state else ""
            found[one] = Job(one, word, state.removeprefix(word).strip(), nodes)
    return found


def expand_ids(text: str) -> list[str]:
    """`12`, `12_3`, `12_[2-4,7%5]` and `12_[0-6:2]` as single ids; what is cut off is left out."""
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
    """How the start of a job before this one ended, as NODE_FAIL; empty if nobody knows."""
    try:
        text = call(["sacct", "--noheader", "--parsable2", "-X", "--duplicates", "-j", job,
                     "-o", "State"], patience=10)  # fmt: skip
    except NoAnswer:
        return ""
    states = [line.split()[0] for line in text.splitlines() if line.strip()]
    ended = [state for state in states if state not in ACTIVE - {"REQUEUED"}]
    return ended[-1] if ended else ""


def largest_array() -> int:
    """How many elements an array may have (MaxArraySize bounds the index, from 0)."""
    text = call(["scontrol", "show", "config"])
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


def submit_limit(qos: str | None) -> int | None:
    """How many jobs the user may have submitted at once, None if nothing limits it or says so."""
    limits = []
    try:
        shown = ["-n", "-P", "show"]
        wanted = ["assoc", f"user={user()}", "format=MaxSubmitJobs,DefaultQOS"]
        rows = [line.split("|") for line in call(["sacctmgr", *shown, *wanted]).splitlines()]
        limits += [row[0] for row in rows]
        names = [qos] if qos else sorted({row[1] for row in rows if row[1]})
        for name in names:
            limits += call(["sacctmgr", *shown, "qos", name, "format=MaxSubmitPU"]).split()
    except (NoAnswer, IndexError):
        return None
    numbers = [int(text) for text in limits if text.strip().isdecimal()]
    return min(numbers) if numbers else None


def release(ids: Sequence[str]) -> None:
    """Let held jobs or array elements start."""
    if ids:
        call(["scontrol", "release", ",".join(ids)])


def cancel(ids: Sequence[str]) -> None:
    """End jobs or array elements; those that have ended are no error."""
    for start in range(0, len(ids), 500):
        call(["scancel", "--quiet", *ids[start : start + 500]])


def requeue(job: str) -> None:
    call(["scontrol", "requeue", job])


def address(node: str) -> str:
    """Where a node is reached: by its name, else by what Slurm has for it."""
    try:
        socket.gethostbyname(node)
    except OSError:
        with suppress(NoAnswer):
            text = call(["scontrol", "--oneliner", "show", "node", node], patience=10)
            found = re.search(r"NodeAddr=(\S+)", text)
            return found[1] if found else node
    return node


def described(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`."""
    text = call(["scontrol", "--oneliner", "show", "job", job], patience=10)
    return dict(re.findall(r"(\w+)=(\S*)", text))
