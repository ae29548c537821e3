"""What was submitted: written before Slurm is asked, so that nothing it accepts can be lost.

outputs/sweeps/SWEEP/submissions/ID/ holds submission.json, what became of the canary, and jobs/,
submitit's scripts and logs. Run ids are the link to everything else.
"""

from __future__ import annotations

import fcntl
import itertools
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from densevit.errors import UserError
from densevit.rundir import read_json, write_json
from densevit.sweep.launch.slurm.attempts import Limits, known

PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Chunk:
    """One array of jobs: `count` tasks of a submission from `first` on.

    `job` is Slurm's id, empty until it is known; `void` says that Slurm never took it.
    """

    name: str
    first: int
    count: int
    job: str = ""
    void: bool = False

    def element(self, task: int) -> str:
        """The job of a task. An array of one is no array."""
        return f"{self.job}_{task - self.first}" if self.count > 1 else self.job


@dataclass(frozen=True)
class Submission:
    """Runs with equal resources that were submitted together.

    `tasks` are the run ids of each job. With `canary`, all but the first wait until that one has
    passed its first steps. `code` is the folder of the code that they run, empty for live code;
    with `tracking` they are mirrored to MLflow.
    """

    folder: Path
    sweep: str
    user: str
    resources: Mapping[str, Any]
    tasks: Sequence[Sequence[str]]
    chunks: Sequence[Chunk]
    canary: bool
    code: str
    limits: Limits
    signal_seconds: int
    tracking: bool = True
    created: float = field(default_factory=time.time)

    @property
    def jobs_folder(self) -> Path:
        return self.folder / "jobs"

    def elements(self) -> dict[str, Sequence[str]]:
        """Each job that Slurm has taken, with its run ids, in order."""
        return {
            chunk.element(task): self.tasks[task]
            for chunk in self.chunks
            if chunk.job
            for task in range(chunk.first, chunk.first + chunk.count)
        }

    def owns(self, job: str, name: str) -> bool:
        """Whether a job in the queue is one of these: a cluster that was set up anew counts from 1
        again, and a number alone may be somebody else's.
        """
        number = job.partition("_")[0]
        return any((chunk.job, chunk.name) == (number, name) for chunk in self.chunks)

    def with_chunk(self, number: int, **changes: Any) -> Submission:
        """The submission with one of its chunks changed."""
        chunks = list(self.chunks)
        chunks[number] = replace(chunks[number], **changes)
        return replace(self, chunks=tuple(chunks))

    def canary_word(self) -> dict[str, Any] | None:
        """What became of the canary: `passed`, and if not, its `run` and `message`."""
        return read_json(self.folder / "canary.json")

    def write_canary_word(self, passed: bool, run: str = "", message: str = "") -> None:
        record = {"passed": passed, "run": run, "message": message}
        write_json(self.folder / "canary.json", record)


def new_folder(sweep_folder: Path) -> Path:
    """A folder for a new submission, whose name sorts by time."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return sweep_folder / "submissions" / name


def write(submission: Submission) -> None:
    record = asdict(submission)
    del record["folder"]
    write_json(submission.folder / "submission.json", record)


def read(folder: Path) -> Submission:
    """Errors: `UserError` for a damaged record."""
    file = folder / "submission.json"
    record = read_json(file)
    try:
        chunks = tuple(Chunk(**known(Chunk, chunk)) for chunk in record.pop("chunks"))
        limits = Limits(**known(Limits, record.pop("limits")))
        record = known(Submission, record)
        submission = Submission(folder=folder, chunks=chunks, limits=limits, **record)
        if not isinstance(submission.created, int | float):
            raise TypeError("created is no time")
        bounds = [0, *itertools.accumulate(chunk.count for chunk in chunks)]
        if [*(chunk.first for chunk in chunks), len(submission.tasks)] != bounds:
            raise TypeError("the chunks are not those of the tasks")
        return submission
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: is not as it should be: {error!r}") from None


def read_all(outputs: Path) -> list[Submission]:
    """The submissions of all sweeps, the oldest first: a run may have been submitted by another."""
    files = outputs.glob("sweeps/*/submissions/*/submission.json")
    return sorted((read(file.parent) for file in files), key=lambda s: s.created)


def newest_jobs(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, str]]:
    """Run id to the submission that has it last, and the job there."""
    return {
        run: (submission, job)
        for submission in submissions
        for job, runs in submission.elements().items()
        for run in runs
    }


@contextmanager
def submitting(outputs: Path) -> Iterator[None]:
    """One submitter at a time, the next one waits: two that look together would submit twice.

    Errors: `UserError` when the other one takes too long.
    """
    outputs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (outputs / "submitting.lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{outputs}: another command has been submitting for {PATIENCE:.0f} s"
                    ) from None
                time.sleep(0.1)
        yield
