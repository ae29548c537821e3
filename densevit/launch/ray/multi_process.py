"""A run of several processes on Ray, one per GPU, started and connected by Ray Train."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densevit.launch.ray.fork_server import OF_RAY
from densevit.runs.directory import RunFolder
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_FAILED
from densevit.utils.files import write_atomic

GRACE_SECONDS = 60.0
STOP_EVERY = 0.5  # seconds between two checks for stop files, on a disk that may be slow


def stop_signal_of(stop_files: Sequence[Path]) -> Callable[[], int]:
    """Return a function that returns SIGTERM as soon as one of some files exists, else 0."""
    checked, found = 0.0, 0

    def stop_signal() -> int:
        nonlocal checked, found
        if not found and time.monotonic() - checked >= STOP_EVERY:
            checked = time.monotonic()
            found = signal.SIGTERM if any(path.exists() for path in stop_files) else 0
        return found

    return stop_signal


class MultiProcess:
    """The client of Ray Train, with the methods of `ForkServer`: one run after another."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self, folder: RunFolder, config: dict[str, Any]) -> None:
        """Start a run; the one before must have ended."""
        self._code_file = Path(config["scratch"]) / f"{folder.path.name}.code"
        self._stop_file = Path(config["scratch"]) / f"{folder.path.name}.stop"
        self._code_file.unlink(missing_ok=True)
        self._stop_file.unlink(missing_ok=True)
        paths = {
            "folder": str(folder.path),
            "stop_files": [config["stop"], str(folder.stop_file), str(self._stop_file)],
            "code": str(self._code_file),
        }
        # In a thread: `fit` returns only at the end, and the actor has to watch the run.
        self._thread = threading.Thread(target=_fit, args=(config, paths), daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """Return the run's exit code; None while it runs."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        return int(self._code_file.read_text()) if self._code_file.exists() else EXIT_FAILED

    def stop(self) -> int | None:
        """Ask the run to stop at its next step, and wait; return as `poll`."""
        if self._thread is None:
            return None
        self._stop_file.touch()
        self._thread.join(GRACE_SECONDS)
        if self._thread.is_alive():  # it waits for resources or hangs; it ends with the actor
            self._thread = None
            return EXIT_CARRY_ON
        return self.poll()

    def close(self) -> None:
        """Do nothing: no process is left over."""


def _fit(config: dict[str, Any], paths: dict[str, Any]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    each = {"CPU": config["cpus"], **({"GPU": 1} if config["gpus"] else {})}
    trainer = TorchTrainer(
        _train,
        train_loop_config=paths,
        scaling_config=ScalingConfig(
            num_workers=config["processes"], use_gpu=bool(config["gpus"]),
            resources_per_worker=each, placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=Path(paths["folder"]).name, storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0),  # Tune starts the run again
        ),
    )  # fmt: skip
    trainer.fit()


def _train(paths: dict[str, Any]) -> None:
    """Train, in each process; the process group exists already."""
    from densevit.train.execute import execute
    from densevit.utils.distributed import world

    os.environ.update(OF_RAY)
    folder = RunFolder(Path(paths["folder"]))
    stop_signal = stop_signal_of([Path(file) for file in paths["stop_files"]])
    code = execute(folder, folder.config(), stop_signal)
    if world().writes:
        write_atomic(Path(paths["code"]), str(code))
