"""A run as a trial of Ray Tune: an actor that starts it, waits for it, and reports its epochs.

An actor takes one run after another, and so does its process (`fork_server`): a slot pays for the
imports once. `multi_process` starts a run of several processes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from densevit.launch.process import settle
from densevit.launch.ray.fork_server import ForkServer
from densevit.launch.ray.multi_process import MultiProcess, stop_signal_of
from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import finite, read_metrics
from densevit.utils.errors import EXIT_CARRY_ON, EXIT_MISTAKE, RunError
from densevit.utils.files import read_json

POLL_SECONDS = 0.05


class Trial(tune.Trainable):
    """The actor of a trial; its `config` comes from `driver.trial_config`."""

    code: int | None

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)
        multi = self.run["processes"] > 1
        self.starter: ForkServer | MultiProcess = MultiProcess() if multi else ForkServer()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next run in the same actor."""
        self._halt()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait until the run has ended or, if there is a scheduler, has validated an epoch.

        Errors: `RunError` for a run that failed and may be retried.
        """
        while True:
            if self.stop_signal():
                self._halt()
                return {"end": "stopped", "done": True}
            # The process of an earlier attempt may still be writing its checkpoint.
            if not self.started and not self.folder.locked():
                self._start()
            if self.started and self.code is None:
                self.code = self.starter.poll()
            result = self._validated()
            if result:
                return result  # before the end, which may raise an error
            if self.code is not None:
                return self._end(self.code)
            time.sleep(POLL_SECONDS)

    def cleanup(self) -> None:
        self._halt()
        self.starter.close()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Save nothing: a run writes its own checkpoints."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Load nothing; see `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        self.run = config["run"]
        self.folder = RunFolder(Path(self.run["folder"]))
        self.stop_signal = stop_signal_of([Path(self.run["stop"]), self.folder.stop_file])
        self.started = self.ended = False
        self.code = None
        self.offset, self.epoch = 0, 0.0

    def _start(self) -> None:
        if self.run["metric"]:  # the scheduler has the earlier results already
            lines, self.offset = read_metrics(self.folder.metrics_file)
            self.epoch = max((x["epoch"] for x in lines if self.run["metric"] in x), default=0.0)
        if isinstance(self.starter, MultiProcess):
            self.starter.start(self.folder, self.run)
        else:
            self.starter.start(self.folder)
        self.started = True

    def _validated(self) -> dict[str, Any]:
        """Return the newest epoch validated since the last call, {} if there is none. The last
        epoch is left out: stopping after it saves nothing."""
        metric = self.run["metric"]
        if not metric or not self.started or not self.folder.metrics_file.exists():
            return {}
        # A resumed run first removes lines that are newer than its checkpoint.
        if self.folder.metrics_file.stat().st_size < self.offset:
            self.offset = 0
        lines, self.offset = read_metrics(self.folder.metrics_file, self.offset)
        for line in reversed(lines):
            value = finite(line.get(metric))
            if value is not None and self.epoch < line["epoch"] < self.run["epochs"]:
                self.epoch = line["epoch"]
                return {"epoch": line["epoch"], metric: value}
        return {}

    def _end(self, code: int) -> dict[str, Any]:
        self.ended = True
        settle(self.folder, code)
        if code in (0, EXIT_CARRY_ON):
            return {"end": "finished" if code == 0 else "stopped", "done": True}
        message = self.folder.status().message
        if code == EXIT_MISTAKE:  # a retry would fail again
            return {"end": "failed", "done": True}
        raise RunError(message)

    def _halt(self) -> None:
        """Stop a running run; record it as stopped if the scheduler decided so."""
        if not self.ended and self.started:
            code = self.starter.stop() if self.code is None else self.code
            if code is not None:
                settle(self.folder, code)
        self.ended = True
        verdict = read_json(Path(self.run["verdict"]))
        if verdict is not None and self.folder.recorded_status().state == "cancelled":
            self.folder.write_status("stopped", **self.folder.progress(), **verdict)
