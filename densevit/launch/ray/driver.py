"""Execute runs as trials of Ray Tune until all have ended."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from densevit.launch.foreground import (
    Interrupted,
    Progress,
    Watch,
    interruptible,
    launched,
    launching,
)
from densevit.launch.ray import cluster, early_stopping
from densevit.launch.ray.trial import Trial
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.utils.errors import EXIT_CARRY_ON
from densevit.utils.files import last_lines, write_json

PATIENCE_SECONDS = 180.0  # until an interrupted command exits; a run has a minute


def launch(plan: Plan, runs: tuple[Run, ...], watch: Watch) -> None:
    """Execute runs on the connected Ray; return when all have ended, successfully or not.

    `watch` is called with the progress several times a second.
    Errors: `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, with every run stopped.
    """
    shared = plan.folder / "ray"
    shared.mkdir(parents=True, exist_ok=True)
    for left in shared.iterdir():  # left by a killed command
        if not launched(left):
            shutil.rmtree(left, ignore_errors=True)
    # Files that the nodes share, for the time of this command only.
    scratch = Path(tempfile.mkdtemp(dir=shared))
    scratch.chmod(0o755)
    try:
        with launching(scratch):
            _launch(plan, runs, watch, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _launch(plan: Plan, runs: tuple[Run, ...], watch: Watch, scratch: Path) -> None:
    stop = scratch / "stop"
    callback = _ProgressCallback(plan, runs, watch)
    settings = plan.spec.ray
    tuner = tune.Tuner(
        tune.with_resources(Trial, _bundles),
        param_space={"run": tune.grid_search([trial_config(plan, run, scratch) for run in runs])},
        tune_config=tune.TuneConfig(
            reuse_actors=True, max_concurrent_trials=cluster.runs_at_once(plan, runs),
            scheduler=_scheduler(plan, runs, scratch),
            trial_name_creator=_id, trial_dirname_creator=_id,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch), verbose=0, callbacks=[callback],
            stop=_Stop(stop), checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
        ),
    )  # fmt: skip
    # A Ray that has died would never report that the runs have stopped.
    forced = threading.Timer(PATIENCE_SECONDS, os._exit, [EXIT_CARRY_ON])
    forced.daemon = True

    def end() -> None:
        stop.touch()
        forced.start()

    with interruptible(end):
        try:
            tuner.fit()
        finally:
            forced.cancel()
        callback.show()
    if stop.exists():
        raise Interrupted


def trial_config(plan: Plan, run: Run, scratch: Path) -> dict[str, Any]:
    """Return the config of a trial: the run's folder and files, and its resources."""
    rule, needs = plan.spec.early_stop, cluster.needs(plan, run)
    return {
        "id": run.id, "folder": str(plan.run_folder(run).path), "scratch": str(scratch),
        "stop": str(scratch / "stop"), "verdict": str(_verdict(scratch, run.id)),
        "metric": rule.metric if rule else None, "epochs": run.config.epochs,
        "processes": cluster.processes(plan, run), "cpus": needs["CPU"], "gpus": needs["GPU"],
    }  # fmt: skip


def _bundles(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return the resources of a trial's actor.

    Ray Train requests the processes of a multi-process run itself. Their actor must take no CPU
    from them, and Tune refuses an actor without any resource.
    """
    run = config["run"]
    if run["processes"] > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    return tune.PlacementGroupFactory([{"CPU": run["cpus"], "GPU": run["gpus"]}])


def _id(trial: TuneTrial) -> str:
    return str(trial.config["run"]["id"])


def _last_error(trial: TuneTrial) -> str:
    """Return the last line of the trial's error file, without colors."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = last_lines(file, 1) if file else []
    return lines[0].strip() if lines else "its actor has died"


def _verdict(scratch: Path, run: str) -> Path:
    return scratch / f"{run}.verdict"


def _scheduler(plan: Plan, runs: tuple[Run, ...], scratch: Path) -> Any:
    rule = plan.spec.early_stop
    if rule is None:
        return None

    def tell(run: str, verdict: dict[str, Any]) -> None:
        write_json(_verdict(scratch, run), verdict)

    return early_stopping.make_scheduler(plan, rule, runs, tell)


class _Stop(tune.Stopper):
    """A stopper that ends all trials when the stop file exists; single runs end by themselves."""

    def __init__(self, stop_file: Path) -> None:
        self.stop_file = stop_file

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.stop_file.exists()


class _ProgressCallback(tune.Callback):
    """A callback that keeps the progress and passes it to `watch`."""

    def __init__(self, plan: Plan, runs: tuple[Run, ...], watch: Watch) -> None:
        self.plan, self.watch = plan, watch
        self.runs = {run.id: run for run in runs}
        self.progress = Progress(deque(runs))
        self.leaving: list[Run] = []  # their process may still write its last checkpoint

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune pickles its callbacks to restore them later; a terminal cannot be pickled.
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self.show()

    def show(self) -> None:
        """Show the progress; a run has ended only when its process has released its lock."""
        for run in [run for run in self.leaving if not self.plan.run_folder(run).locked()]:
            self.leaving.remove(run)
            del self.progress.active[run]
            self.progress.ended.append(run)
        self.watch(self.progress)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        run = self.runs[_id(trial)]
        if run in self.progress.waiting:  # not at a retry
            self.progress.waiting.remove(run)
            self.progress.active[run] = trial

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._ended(self.runs[_id(trial)])

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        run = self.runs[_id(trial)]
        folder = self.plan.run_folder(run)
        if folder.recorded_status().state in ("pending", "running") and not folder.locked():
            message = f"Ray has lost the run's process: {_last_error(trial)}"
            folder.write_status("failed", **folder.progress(), message=message, cause="node")
        self._ended(run)

    def _ended(self, run: Run) -> None:
        if run in self.progress.active and run not in self.leaving:
            self.leaving.append(run)
