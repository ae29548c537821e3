"""The records of submissions, written before sbatch is called so that no job can be lost.

outputs/sweeps/SWEEP/submissions/ID/ holds submission.json, the canary's result (canary.json), and
jobs/ with submitit's scripts and logs. Run ids link it to everything else.
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

from densevit.launch.slurm.attempts import Limits, known
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

PATIENCE = 120.0  # seconds
DEFAULT_HOURS = 24  # of a job whose resources name none


@dataclass(frozen=True)
class Chunk:
    """One array of jobs: `count` tasks of a submission from task `first` on.

    `job` is Slurm's id, empty until it is known; `void` means that Slurm never accepted it.
    """

    name: str
    first: int
    count: int
    job: str = ""
    void: bool = False

    def element(self, task: int) -> str:
        """Return the id of a task's job. An array of one is a plain job."""
        return f"{self.job}_{task - self.first}" if self.count > 1 else self.job


@dataclass(frozen=True)
class Submission:
    """Runs with equal resources that were submitted together.

    `tasks` are the run ids of each job. With `canary`, all jobs but the first wait for its first
    steps. `code` is the folder of the code snapshot, empty for live code; with `tracking` the runs
    are mirrored to MLflow.
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

    def log(self, job: str) -> Path:
        """Return the log that submitit writes for a job."""
        return self.jobs_folder / f"{job}_0_log.out"

    def elements(self) -> dict[str, Sequence[str]]:
        """Return the jobs that Slurm has accepted, with their run ids, in order."""
        return {
            chunk.element(task): self.tasks[task]
            for chunk in self.chunks
            if chunk.job
            for task in range(chunk.first, chunk.first + chunk.count)
        }

    def owns(self, job: str, name: str) -> bool:
        """Return whether a job in the queue belongs to this submission, by id and name: an id alone
        may be another job's, since a reinstalled cluster counts from 1 again."""
        number = job.partition("_")[0]
        return any((chunk.job, chunk.name) == (number, name) for chunk in self.chunks)

    def with_chunk(self, number: int, **changes: Any) -> Submission:
        """Return the submission with one of its chunks changed."""
        chunks = list(self.chunks)
        chunks[number] = replace(chunks[number], **changes)
        return replace(self, chunks=tuple(chunks))

    def canary_result(self) -> dict[str, Any] | None:
        """Return the canary's result: `passed`, and if not, its `run` and `message`."""
        return read_json(self.folder / "canary.json")

    def write_canary_result(self, passed: bool, run: str = "", message: str = "") -> None:
        record = {"passed": passed, "run": run, "message": message}
        write_json(self.folder / "canary.json", record)


def new_folder(sweep_folder: Path) -> Path:
    """Return the folder of a new submission; the names sort by time."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    return sweep_folder / "submissions" / name


def write(submission: Submission) -> None:
    record = asdict(submission)
    del record["folder"]
    write_json(submission.folder / "submission.json", record)


def read(folder: Path) -> Submission:
    """Read a submission. Errors: `UserError` for a damaged record."""
    file = folder / "submission.json"
    record = read_json(file) or {}
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
        raise UserError(f"{file}: is damaged: {error!r}") from None


def read_all(outputs: Path) -> list[Submission]:
    """Return the submissions of all sweeps, oldest first: a run may belong to several sweeps."""
    files = outputs.glob("sweeps/*/submissions/*/submission.json")
    return sorted((read(file.parent) for file in files), key=lambda s: s.created)


def newest_jobs(submissions: Sequence[Submission]) -> dict[str, tuple[Submission, str]]:
    """Map each run id to the newest submission that has it, and its job there."""
    return {
        run: (submission, job)
        for submission in submissions
        for job, runs in submission.elements().items()
        for run in runs
    }


@contextmanager
def submitting(outputs: Path) -> Iterator[None]:
    """Wait to be the only submitter: two at the same time would submit runs twice.

    Errors: `UserError` if another one takes too long.
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
                        f"{outputs}: another command has been submitting for {PATIENCE:.0f} s; "
                        f"try again when it has ended"
                    ) from None
                time.sleep(0.1)
        yield
