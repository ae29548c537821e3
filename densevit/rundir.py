"""The one place that knows where a run's files lie and how they are written.

A run directory is the truth about a run; MLflow, tables and `status` are made from it. A file
that another process may read is written under a temporary name, fsynced and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from densevit import yamlfile
from densevit.config import Identity, RunConfig, identity
from densevit.errors import UserError
from densevit.layers import Layer, build

# `stopped`: by the rule of a sweep (early_stop), and so over there; `cancelled`: by a person.
State = Literal["pending", "running", "finished", "failed", "cancelled", "stopped"]
STATES: tuple[State, ...] = ("pending", "running", "finished", "failed", "cancelled", "stopped")
# Why a run failed: no memory; no time, again and again, without a step; numbers that are not
# finite; the machine; a signal, by whom nobody said; else the code, a setting or the data.
Cause = Literal["", "oom", "timeout", "nan", "node", "killed", "code"]
CAUSES: tuple[Cause, ...] = ("oom", "timeout", "nan", "node", "killed", "code")


def outputs_root(given: str | None) -> Path:
    """Where outputs go: the given folder, else $DENSEVIT_OUTPUTS, else ./outputs (absolute).

    Errors: `UserError` if that is a file.
    """
    chosen = given or os.environ.get("DENSEVIT_OUTPUTS") or "outputs"
    path = Path(chosen).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"outputs: {path}: is a file and no folder")
    return path


def sweep_folder(outputs: Path, name: str) -> Path:
    """The folder of a sweep: its plan, its MLflow parent run and its report."""
    return outputs / "sweeps" / name


def run_folder(outputs: Path, run_id: str) -> RunFolder:
    """The folder of a run, which need not exist yet."""
    return RunFolder(outputs / "runs" / run_id)


@dataclass(frozen=True)
class RunFolder:
    """Names inside a run directory."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Every field of the run's RunConfig, as YAML."""
        return self.path / "config.yaml"

    @property
    def identity_file(self) -> Path:
        """`run`, `cell` and the preimage whose hash they are, as JSON."""
        return self.path / "identity.json"

    @property
    def provenance_file(self) -> Path:
        """git sha and diff, versions, host and command of each start, as JSON."""
        return self.path / "provenance.json"

    @property
    def fingerprint_file(self) -> Path:
        """What the data looked like when the run first saw it, as JSON."""
        return self.path / "fingerprint.json"

    @property
    def status_file(self) -> Path:
        """The run's last word about itself, as JSON; see `Status`."""
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object a logged step, append-only."""
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """The numbers of each benchmark, as JSON."""
        return self.path / "results.json"

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoint"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def stop_file(self) -> Path:
        """Its existence asks the launcher that has the run, or will have it next, to stop it."""
        return self.path / "stop"

    @property
    def attempts_file(self) -> Path:
        """Each start as a job and how it ended, as JSON."""
        return self.path / "attempts.json"

    @property
    def tracking_file(self) -> Path:
        """What the MLflow mirror has sent so far, as JSON."""
        return self.path / "tracking.json"

    @property
    def tracking_lock(self) -> Path:
        """Held by the process that sends the run to MLflow."""
        return self.path / "tracking.lock"

    def predictions_file(self, benchmark: str) -> Path:
        """A row a sample of a benchmark, as Parquet."""
        return self.path / "predictions" / f"{benchmark}.parquet"

    @property
    def features_folder(self) -> Path:
        """Features that probes are tried on, while these are made, as NumPy's npy."""
        return self.path / "features"

    def matches_file(self, when: str) -> Path:
        """Correspondences in some val pictures `before` or `after` training, as NumPy's npz."""
        return self.path / "matches" / f"{when}.npz"

    def create(self, config: RunConfig) -> Identity:
        """Make the folder for a run, or take the one that is there for the same run.

        `config.yaml` is brought up to date, since execution fields may change between starts.
        Errors: `UserError` if the folder belongs to another configuration.
        """
        ids = identity(config)
        held = read_json(self.identity_file)
        if held is not None and held.get("preimage") != ids.preimage:
            raise UserError(
                f"{self.path}: holds another run: {json.dumps(held.get('preimage'))} "
                f"and not {json.dumps(ids.preimage)}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        text = yamlfile.dump(config.model_dump())
        if not self.config_file.exists() or self.config_file.read_text(encoding="utf-8") != text:
            write_atomic(self.config_file, text)
        if held is None:
            write_json(self.identity_file, ids._asdict())
        return ids

    def config(self) -> RunConfig:
        """The run's configuration as its folder holds it."""
        return build([Layer(str(self.config_file), yamlfile.load(self.config_file))])

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for this process; yields False when another process holds it.

        The operating system lets go of the lock when the process ends, however it ends.
        """
        with self.lock_file.open("a") as file:
            _HELD.add(file)
            try:
                yield _flock(file)
            finally:
                _HELD.discard(file)

    def locked(self) -> bool:
        """Whether a process holds the run now."""
        try:
            with self.lock_file.open() as file:
                # Shared, so that two observers never take each other for the run itself.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def word(self) -> Status:
        """The run's last word about itself, which may be `running` though it has died."""
        record = read_json(self.status_file)
        if record is None:
            return Status("pending")
        return Status(**{k: v for k, v in record.items() if k in Status.__dataclass_fields__})

    def status(self) -> Status:
        """The run's state, with a run that ended without a word told as failed."""
        status = self.word()
        if status.state == "running" and not self.locked():
            if self.word() != status:  # it may have ended between the two looks
                return self.status()
            return replace(status, state="failed", message=DIED)
        return status

    def seen(self) -> Status:
        """The run's state as an observer takes it who may be on another machine: there a lock need
        not be seen, and a run that has said of late that it runs is believed."""
        status = self.word()
        elsewhere = status.state == "running" and status.host != socket.gethostname()
        if elsewhere and time.time() - status.updated < SILENT_SECONDS:
            return status
        return self.status()

    def progress(self) -> dict[str, Any]:
        """How far the status file says the run is: facts that outlive a change of its state."""
        held = read_json(self.status_file) or {}
        return {k: held[k] for k in _LASTING if k in held}

    def write_status(self, state: State, **facts: Any) -> None:
        """Replace the status file; see `Status` for the facts."""
        host, now = socket.gethostname(), time.time()
        record = {"state": state, **facts, "updated": now, "host": host, "pid": os.getpid()}
        write_json(self.status_file, record)


_LASTING = ("epoch", "epochs", "step", "steps", "started", "spent", "top1")
# A run says so often that it is alive; while it is evaluated it says nothing.
SILENT_SECONDS = 1800.0
DIED = "ended without a word (killed, or the machine went down); start it again to carry on"


@dataclass(frozen=True)
class Status:
    """`epoch` of `epochs` and `step` of `steps` are done; times are Unix seconds.

    `cause` sorts failures. `spent` are the seconds of all starts together, `top1` the last accuracy
    on val in percent; `images_per_second` and `seconds_left` are told while the run trains.
    """

    state: State
    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps: int = 0
    message: str = ""
    cause: Cause = ""
    started: float = 0.0
    updated: float = 0.0
    spent: float = 0.0
    images_per_second: float = 0.0
    seconds_left: float = 0.0
    top1: float | None = None
    host: str = ""
    pid: int = 0


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file.

    Errors: `UserError` if the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object atomically."""
    write_atomic(path, json.dumps(data, indent=1) + "\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to, which takes its place when the block succeeds."""
    with temporary_beside(path) as temporary:
        yield temporary
        put(temporary, path)


@contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """An empty file in the folder of `path`, removed at the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def put(temporary: Path, path: Path) -> None:
    """Give a finished file its name: on the disk before the name is, so that no half is seen."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.chmod(0o666 & ~UMASK)  # mkstemp is private; results are for the group
    temporary.replace(path)
    sync_folder(path.parent)


_HELD: set[IO[str]] = set()


def _let_go() -> None:
    """A forked process, as one that loads pictures, has the file too: were it left open there, the
    run would stay locked for as long as that one outlives a main process that was killed."""
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def _flock(file: IO[str], patience: float = 1.0) -> bool:
    """Take the exclusive lock, waiting out observers, who hold it for microseconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


# Once, at the start: it can only be asked for by changing it, which no two threads may do at once.
UMASK = _umask()


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk, so that a rename in it outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_metrics(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a metrics file from a byte offset on, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line.strip()], offset + len(whole)


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, without colour codes; of a progress bar what it showed last."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 16_384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line][-count:]
