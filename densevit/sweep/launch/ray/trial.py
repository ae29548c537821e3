"""A run as a trial of Ray Tune: an actor that starts it, waits for it, and tells its epochs.

An actor takes one run after another, and so does the process that it has for them (`warm`), so that
imports are paid once a slot. A run of several processes is left to `gang`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from densevit.errors import EXIT_CARRY_ON, EXIT_MISTAKE, RunError
from densevit.metricsfile import finite
from densevit.rundir import RunFolder, read_json, read_metrics
from densevit.sweep.launch.ray.gang import Gang, asking
from densevit.sweep.launch.training import settle
from densevit.sweep.launch.warm import Warm

POLL_SECONDS = 0.05


class Trial(tune.Trainable):
    """What a trial does; its `config` is that of `driver.trial_config`."""

    def setup(self, config: dict[str, Any]) -> None:
        self.starter: Warm | Gang | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next run in the same actor."""
        self._halt()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait until the run has ended or, if the scheduler wants to know, has validated an epoch.

        Errors: `RunError` for a run that failed and may be tried again.
        """
        while True:
            if self.asked():
                self._halt()
                return {"end": "stopped", "done": True}
            # The process of an earlier attempt may still be writing its checkpoint.
            if not self.started and not self.folder.locked():
                self._start()
            if self.started and self.code is None:
                self.code = self.starter.poll()
            told = self._validated()
            if told:
                return told  # before how it ended, which may be an error
            if self.code is not None:
                return self._end(self.code)
            time.sleep(POLL_SECONDS)

    def cleanup(self) -> None:
        self._halt()
        if self.starter is not None:
            self.starter.close()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: a run keeps checkpoints of its own."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing; see `save_checkpoint`."""

    def _begin(self, config: dict[str, Any]) -> None:
        self.run = config["run"]
        self.folder = RunFolder(Path(self.run["folder"]))
        self.asked = asking([Path(self.run["stop"]), self.folder.stop_file])
        self.started = self.ended = False
        self.code: int | None = None
        self.offset, self.epoch = 0, 0.0
        if self.starter is None:
            self.starter = Gang() if self.run["processes"] > 1 else Warm()

    def _start(self) -> None:
        if self.run["metric"]:  # what stands there already, the scheduler has been told
            lines, self.offset = read_metrics(self.folder.metrics_file)
            self.epoch = max((x["epoch"] for x in lines if self.run["metric"] in x), default=0.0)
        if isinstance(self.starter, Gang):
            self.starter.start(self.folder, self.run)
        else:
            self.starter.start(self.folder)
        self.started = True

    def _validated(self) -> dict[str, Any]:
        """The newest epoch that was validated since the last look; nothing if none was, and of the
        last one, after which there is nothing to be saved."""
        metric = self.run["metric"]
        if not metric or not self.started or not self.folder.metrics_file.exists():
            return {}
        # A run that carries on first takes away what is newer than its checkpoint.
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
        if code == EXIT_MISTAKE:  # which would be made again
            return {"end": "failed", "done": True}
        raise RunError(message)

    def _halt(self) -> None:
        """End a run that is going on, and say so if it was the scheduler's wish."""
        if not self.ended and self.started:
            code = self.starter.stop() if self.code is None else self.code
            if code is not None:
                settle(self.folder, code)
        self.ended = True
        verdict = read_json(Path(self.run["verdict"]))
        if verdict is not None and self.folder.word().state == "cancelled":
            self.folder.write_status("stopped", **self.folder.progress(), **verdict)
