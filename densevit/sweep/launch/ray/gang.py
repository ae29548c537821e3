"""A run of several processes on Ray: one a GPU, started and connected by Ray Train."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densevit.errors import EXIT_CARRY_ON, EXIT_FAILED
from densevit.rundir import RunFolder, write_atomic
from densevit.sweep.launch.warm import OF_RAY

GRACE_SECONDS = 60.0
STOP_EVERY = 0.5  # seconds between two looks for a wish to stop, on a disk that may be far away


def asking(wishes: Sequence[Path]) -> Callable[[], int]:
    """A function that tells SIGTERM as soon as one of some files exists, 0 before."""
    looked, found = 0.0, 0

    def asked() -> int:
        nonlocal looked, found
        if not found and time.monotonic() - looked >= STOP_EVERY:
            looked = time.monotonic()
            found = signal.SIGTERM if any(path.exists() for path in wishes) else 0
        return found

    return asked


class Gang:
    """Runs one after another, each as a group of processes of Ray Train; as `warm.Warm`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self, folder: RunFolder, config: dict[str, Any]) -> None:
        """Start a run; the one before must have ended."""
        self._codes = Path(config["scratch"]) / f"{folder.path.name}.code"
        self._wish = Path(config["scratch"]) / f"{folder.path.name}.stop"
        self._codes.unlink(missing_ok=True)
        self._wish.unlink(missing_ok=True)
        told = {
            "folder": str(folder.path),
            "wishes": [config["stop"], str(folder.stop_file), str(self._wish)],
            "code": str(self._codes),
        }
        # A thread, since `fit` returns when all is over, and the actor has to look at the run.
        self._thread = threading.Thread(target=_fit, args=(config, told), daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """How the run has ended; None while it goes on."""
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread = None
        return int(self._codes.read_text()) if self._codes.exists() else EXIT_FAILED

    def stop(self) -> int | None:
        """Ask the run to stop at its next step, and wait; as `poll`."""
        if self._thread is None:
            return None
        self._wish.touch()
        self._thread.join(GRACE_SECONDS)
        if self._thread.is_alive():  # it waits for processors, or hangs: it ends with the actor
            self._thread = None
            return EXIT_CARRY_ON
        return self.poll()

    def close(self) -> None:
        """Nothing is left over."""


def _fit(config: dict[str, Any], told: dict[str, Any]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    each = {"CPU": config["cpus"], **({"GPU": 1} if config["gpus"] else {})}
    trainer = TorchTrainer(
        _work,
        train_loop_config=told,
        scaling_config=ScalingConfig(
            num_workers=config["processes"], use_gpu=bool(config["gpus"]),
            resources_per_worker=each, placement_strategy="PACK",
        ),
        run_config=RunConfig(
            name=Path(told["folder"]).name, storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0),  # Tune starts the run again
        ),
    )  # fmt: skip
    trainer.fit()


def _work(told: dict[str, Any]) -> None:
    """In each process, with its group there already."""
    from densevit.distributed import world
    from densevit.lifecycle import execute

    os.environ.update(OF_RAY)
    folder = RunFolder(Path(told["folder"]))
    code = execute(folder, folder.config(), asking([Path(wish) for wish in told["wishes"]]))
    if world().writes:
        write_atomic(Path(told["code"]), str(code))
