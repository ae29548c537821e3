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
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from densevit.launch.slurm.attempts import Limits
from densevit.runs.record_file import CHECKED, Count, RecordKind, Time, read_record
from densevit.utils.errors import UserError
from densevit.utils.files import write_json

PATIENCE = 120.0  # seconds
DEFAULT_HOURS = 24  # of a job whose resources name none


@dataclass(frozen=True)
class Chunk:
    """One array of jobs: `count` tasks of a submission from task `first` on.

    `job` is Slurm's id, empty until it is known; `void` means that Slurm never accepted it.
    """

    name: str
    first: Count
    count: Count
    job: str = ""
    void: bool = False

    def element(self, task: int) -> str:
        """Return the id of a task's job. An array of one is a plain job."""
        return f"{self.job}_{task - self.first}" if self.count > 1 else self.job


@CHECKED
class _CanaryRecord(TypedDict):
    """canary.json"""

    passed: bool
    run: str
    message: str


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

    def canary_result(self) -> _CanaryRecord | None:
        """Return the canary's result: `passed`, and if not, its `run` and `message`."""
        return read_record(self.folder / "canary.json", _CANARY)

    def write_canary_result(self, passed: bool, run: str = "", message: str = "") -> None:
        record = {"passed": passed, "run": run, "message": message}
        write_json(self.folder / "canary.json", record)


@CHECKED
class _SubmissionRecord(TypedDict):
    """submission.json: the fields of `Submission` without its folder."""

    sweep: str
    user: str
    resources: dict[str, Any]
    tasks: list[list[str]]
    chunks: list[Chunk]
    canary: bool
    code: str
    limits: Limits
    signal_seconds: Count
    tracking: NotRequired[bool]
    created: Time


_FACTS = {field.name for field in fields(Submission)} - {"folder"}
_SUBMISSION = RecordKind(
    _SubmissionRecord, "remove its folder once squeue shows no job of the sweep any more"
)
_CANARY = RecordKind(_CanaryRecord, "remove the file; the sweep's command decides again")


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
    record = read_record(file, _SUBMISSION)
    if record is None:
        raise UserError(f"{file}: no such file; {_SUBMISSION.remedy}")
    facts: dict[str, Any] = {name: value for name, value in record.items() if name in _FACTS}
    submission = Submission(folder=folder, **{**facts, "chunks": tuple(record["chunks"])})
    bounds = [0, *itertools.accumulate(chunk.count for chunk in submission.chunks)]
    if [*(chunk.first for chunk in submission.chunks), len(submission.tasks)] != bounds:
        fault = "chunks: are not those of the tasks"
        raise UserError(f"{file}: is damaged: {fault}; {_SUBMISSION.remedy}")
    return submission


def read_all(outputs: Path) -> list[Submission]:
    """Return the submissions of all sweeps, oldest first: a run may belong to several sweeps.

    Errors: `UserError` for a damaged record, whose jobs are unknown.
    """
    found, damage = read_readable(outputs)
    if damage:
        raise UserError(damage[0])
    return found


def read_readable(outputs: Path) -> tuple[list[Submission], list[str]]:
    """Return the submissions of all sweeps that can be read, and what is wrong with others."""
    found, damage = [], []
    for file in sorted(outputs.glob("sweeps/*/submissions/*/submission.json")):
        try:
            found.append(read(file.parent))
        except UserError as error:
            damage.append(str(error))
    return sorted(found, key=lambda s: s.created), damage


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
