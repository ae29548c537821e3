"""The run directory: the only module that knows its files and how they are written.

A run directory is the source of truth about a run; MLflow, tables and `status` derive from it. A
file that other processes may read is written under a temporary name, fsynced and renamed.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densevit.config import yaml_file
from densevit.config.evaluation_names import benchmark_names
from densevit.config.identity import SCHEMA_VERSION, Identity, identity
from densevit.config.resolve import Layer, build
from densevit.config.run_config import RunConfig
from densevit.runs import records
from densevit.runs.lock import OPEN_FILES, replaced, try_lock
from densevit.runs.record_file import read_record
from densevit.runs.status import DIED, LASTING, SILENT_SECONDS, State, Status
from densevit.utils.errors import LostFolder, UserError
from densevit.utils.files import read_bytes, write_atomic, write_json


def outputs_root(given: str | None) -> Path:
    """Return the outputs folder: the given one, else $DENSEVIT_OUTPUTS, else ./outputs (absolute).

    Errors: `UserError` if that is a file.
    """
    name = given or os.environ.get("DENSEVIT_OUTPUTS") or "outputs"
    path = Path(name).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"outputs: {path}: is a file, not a folder")
    return path


def sweep_folder(outputs: Path, name: str) -> Path:
    """Return the folder of a sweep: its plan, its MLflow parent run and its report."""
    return outputs / "sweeps" / name


def run_folder(outputs: Path, run_id: str) -> RunFolder:
    """Return the folder of a run, which need not exist yet."""
    return RunFolder(outputs / "runs" / run_id)


@dataclass(frozen=True)
class RunFolder:
    """Paths and records in a run directory."""

    path: Path

    @property
    def config_file(self) -> Path:
        """Every field of the run's RunConfig, as YAML."""
        return self.path / "config.yaml"

    @property
    def identity_file(self) -> Path:
        """`run`, `cell` and the preimage that they hash, as JSON."""
        return self.path / "identity.json"

    @property
    def provenance_file(self) -> Path:
        """git SHA and diff, versions, host and command of each start, as JSON."""
        return self.path / "provenance.json"

    @property
    def fingerprint_file(self) -> Path:
        """The data's fingerprint when the run first saw it, as JSON."""
        return self.path / "fingerprint.json"

    @property
    def status_file(self) -> Path:
        """The status that the run last wrote, as JSON; see `Status`."""
        return self.path / "status.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per logged step, append-only."""
        return self.path / "metrics.jsonl"

    @property
    def results_file(self) -> Path:
        """The metrics of each benchmark, as JSON."""
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
        """A file whose existence requests a stop from the run's launcher, current or next."""
        return self.path / "stop"

    @property
    def attempts_file(self) -> Path:
        """Each start as a job and how it ended, as JSON."""
        return self.path / "attempts.json"

    @property
    def tracking_file(self) -> Path:
        """The record of what the MLflow mirror has sent, as JSON."""
        return self.path / "tracking.json"

    @property
    def tracking_lock(self) -> Path:
        """Locked by the process that sends the run to MLflow."""
        return self.path / "tracking.lock"

    def predictions_file(self, benchmark: str) -> Path:
        """One row per sample of a benchmark, as Parquet."""
        return self.path / "predictions" / f"{benchmark}.parquet"

    @property
    def features_folder(self) -> Path:
        """Temporary features for probes, as NumPy's npy."""
        return self.path / "features"

    def matches_file(self, when: str) -> Path:
        """Correspondences in some val images `before` or `after` training, as NumPy's npz."""
        return self.path / "matches" / f"{when}.npz"

    def identity_record(self) -> records.IdentityRecord | None:
        """Return what identity.json holds, None without one; as the four below.

        Errors: `UserError` if it is damaged.
        """
        return read_record(self.identity_file, records.IDENTITY)

    def status_record(self) -> records.StatusRecord | None:
        return read_record(self.status_file, records.STATUS)

    def provenance(self) -> records.ProvenanceRecord | None:
        return read_record(self.provenance_file, records.PROVENANCE)

    def fingerprint(self) -> records.FingerprintRecord | None:
        return read_record(self.fingerprint_file, records.FINGERPRINT)

    def results(self) -> records.ResultsRecord | None:
        return read_record(self.results_file, records.RESULTS)

    def create(self, config: RunConfig) -> Identity:
        """Create the folder of a run, or reuse the one of the same run.

        `config.yaml` is updated, since execution fields may change between starts. Errors:
        `UserError` if the folder belongs to another configuration.
        """
        if config.init_checkpoint and not config.init_sha256:
            raise ValueError("init_sha256 must be set: the content of the weights is identity")
        ids = identity(config)
        record = self.identity_record()
        if record is not None and record["preimage"] != ids.preimage:
            raise UserError(
                f"{self.path}: holds another run: {json.dumps(record['preimage'])} "
                f"and not {json.dumps(ids.preimage)}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml_file.dump(config.model_dump())
        if read_bytes(self.config_file) != text.encode():
            write_atomic(self.config_file, text)
        if record is None:
            write_json(self.identity_file, ids._asdict())
        return ids

    def config(self) -> RunConfig:
        """Return the configuration stored in the folder. Errors: `UserError` if it is damaged."""
        if self.config_file.exists() and not self.config_file.is_file():
            raise UserError(f"{self.config_file}: cannot be read: it is not a file")
        return build([Layer(str(self.config_file), yaml_file.load(self.config_file))])

    def ids(self) -> tuple[str, str]:
        """Return the ids of the run and its cell, as they were when the run was created."""
        record = self.identity_record()
        if record is None:
            ids = identity(self.config())
            return ids.run, ids.cell
        return record["run"], record["cell"]

    def check_schema(self) -> None:
        """Raise `UserError` for a run of another schema version: its settings mean another run."""
        record = self.identity_record()
        version = record["preimage"]["schema_version"] if record else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{self.path}: was begun with schema version {version}, and this is version "
                f"{SCHEMA_VERSION}, in which some settings mean something else; the run can be "
                f"evaluated, compared and exported, but not continued; its sweep starts new runs"
            )

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Lock the run for this process; yields False if another process holds the lock.

        The operating system releases the lock when the process ends, however it ends.
        """
        with self.lock_file.open("a") as file:
            OPEN_FILES.add(file)
            try:
                yield try_lock(file)
            finally:
                OPEN_FILES.discard(file)

    def check_owned(self) -> None:
        """Raise `LostFolder` if somebody has removed the folder that this process has locked.

        Another process may train the same run in a new one. Called before every write.
        """
        if replaced(self.lock_file):
            raise LostFolder(
                f"{self.path}: was removed or replaced while the run was trained; start it again"
            )

    def locked(self) -> bool:
        """Return True if a process holds the run's lock."""
        try:
            with self.lock_file.open() as file:
                # A shared lock: two observers must not take each other for the run.
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def recorded_status(self) -> Status:
        """Return the recorded status, which may be `running` although the run has died."""
        record: Mapping[str, Any] | None = self.status_record()
        if record is None:
            return Status("pending")
        return Status(**{k: v for k, v in record.items() if k in Status.__dataclass_fields__})

    def status(self) -> Status:
        """Return the run's status; a run that died without recording it counts as failed."""
        status = self.recorded_status()
        if status.state == "running" and not self.locked():
            if self.recorded_status() != status:  # it may have ended since the first read
                return self.status()
            return replace(status, state="failed", message=DIED)
        return status

    def readable_status(self) -> Status:
        """Return the status; one that cannot be read has failed, with the reason as its message.

        For commands on many runs: the others go on.
        """
        try:
            return self.status()
        except UserError as error:
            return Status("failed", message=str(error), cause="code")

    def remote_status(self) -> Status:
        """Return the status for an observer that may be on another machine. A lock may be invisible
        there, so a run that recently recorded `running` is trusted."""
        status = self.recorded_status()
        elsewhere = status.state == "running" and status.host != socket.gethostname()
        if elsewhere and time.time() - status.updated < SILENT_SECONDS:
            return status
        return self.status()

    def progress(self) -> dict[str, Any]:
        """Return the progress in the status file: facts that persist when the state changes."""
        record: Mapping[str, Any] = self.status_record() or {}
        return {name: record[name] for name in LASTING if name in record}

    def write_status(self, state: State, **facts: Any) -> None:
        """Replace the status file; see `Status` for the facts. Errors: `LostFolder`."""
        self.check_owned()
        host, now = socket.gethostname(), time.time()
        record = {"state": state, **facts, "updated": now, "host": host, "pid": os.getpid()}
        write_json(self.status_file, record)


def has_results(folder: RunFolder, config: RunConfig) -> bool:
    """Return True if the run has its records, and results for all that `config` evaluates."""
    results = folder.results()
    if results is None or not set(benchmark_names(config)) <= results["benchmarks"].keys():
        return False
    records = folder.config_file, folder.identity_file, folder.metrics_file
    return all(file.exists() for file in records)
