"""The records in the files of a run directory: what each must hold, and the way out if it does not.

`RunFolder` names the files. Keys may be missing where an earlier version did not write them.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from densevit.runs.record_file import CHECKED, Count, Finite, RecordKind, Seconds, Time
from densevit.runs.status import Cause, State

_Id = Annotated[str, Field(pattern=r"^[0-9a-z]+$")]


@CHECKED
class StatusRecord(TypedDict):
    """status.json; see `Status`. `rule` is the early-stopping rule that has ended the run."""

    state: State
    epoch: NotRequired[Count]
    epochs: NotRequired[Count]
    step: NotRequired[Count]
    steps: NotRequired[Count]
    message: NotRequired[str]
    cause: NotRequired[Cause]
    started: NotRequired[Time]
    updated: NotRequired[Time]
    spent: NotRequired[Seconds]
    images_per_second: NotRequired[Seconds]
    seconds_left: NotRequired[Seconds]
    top1: NotRequired[Finite | None]
    host: NotRequired[str]
    pid: NotRequired[int]
    rule: NotRequired[dict[str, Any]]


@CHECKED
class Preimage(TypedDict):
    schema_version: int


@CHECKED
class IdentityRecord(TypedDict):
    """identity.json; see `config.identity.Identity`."""

    run: _Id
    cell: _Id
    preimage: Preimage


@CHECKED
class Start(TypedDict, total=False):
    """A start of a run, as `runs.provenance.record_start` writes it."""

    time: Time
    host: str
    platform: str
    cpus: int
    threads: Count
    command: str
    launcher: str
    job: str
    versions: dict[str, str]
    git_sha: str | None
    git_diff: Any
    code: str


@CHECKED
class ProvenanceRecord(TypedDict):
    """provenance.json"""

    starts: list[Start]


@CHECKED
class FingerprintRecord(TypedDict, total=False):
    """fingerprint.json: `data.fingerprint.fingerprint` of each set of images."""

    train: dict[str, Any]
    val: dict[str, Any]
    benchmarks: dict[str, dict[str, Any]]
    init_checkpoint: dict[str, Any]


def _measured(numbers: dict[str, Any]) -> dict[str, int | float]:
    """Check the metrics of a benchmark: numbers, and `n`, the number of images that they are over.

    Whole numbers stay whole, which pydantic's float would not let them.
    """
    for name, value in numbers.items():
        if type(value) is not float and not (type(value) is int and abs(value) < 2**63):
            raise ValueError(f"{name}: {repr(value)[:40]} is not a number")
    n = numbers.get("n", None if numbers else 0)
    if not isinstance(n, int) or n < 0:
        fault = "must be a whole number of images" if "n" in numbers else "is missing"
        raise ValueError(f"n {fault}")
    return numbers


Metrics = Annotated[dict[str, Any], AfterValidator(_measured)]


@CHECKED
class ResultsRecord(TypedDict):
    """results.json: the metrics of each benchmark, of a run or of another `model`."""

    benchmarks: dict[str, Metrics]
    run: NotRequired[str]
    cell: NotRequired[str]
    seed: NotRequired[int]
    schema_version: NotRequired[int]
    epochs: NotRequired[Count]
    train_seconds: NotRequired[Seconds]
    metrics_bytes: NotRequired[Count]
    model: NotRequired[str]


STATUS = RecordKind(StatusRecord, "remove the file, and the run goes on from its checkpoint")
IDENTITY = RecordKind(IdentityRecord, "remove the file, and the run's next start writes it again")
PROVENANCE = RecordKind(
    ProvenanceRecord,
    "remove the file: the history of the run's starts is lost, its results stay",
)
FINGERPRINT = RecordKind(
    FingerprintRecord, "remove the file if the images are those that the run was trained on"
)
RESULTS = RecordKind(ResultsRecord, "remove the file, and the run is evaluated from its checkpoint")
