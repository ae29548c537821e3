"""Runs as trials of Ray Tune, until all have ended."""

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

from densevit.errors import EXIT_CARRY_ON
from densevit.rundir import last_lines, write_json
from densevit.sweep.grid import Run
from densevit.sweep.launch.ray import cluster, scheduler
from densevit.sweep.launch.ray.trial import Trial
from densevit.sweep.launch.staying import (
    Interrupted,
    Progress,
    Watch,
    interruptible,
    launched,
    launching,
)
from densevit.sweep.plan import Plan

PATIENCE_SECONDS = 180.0  # of a command that was told to stop; a run has a minute


def launch(plan: Plan, runs: tuple[Run, ...], watch: Watch) -> None:
    """Execute runs on the Ray that is connected; returns when all have ended, well or not.

    `watch` is called several times a second with what is going on.
    Errors: `Interrupted` after Ctrl-C, SIGTERM or SIGHUP, with every run stopped.
    """
    kept = plan.folder / "ray"
    kept.mkdir(parents=True, exist_ok=True)
    for left in kept.iterdir():  # by a command that was killed
        if not launched(left):
            shutil.rmtree(left, ignore_errors=True)
    # What nodes must see of each other, and for the time of this command only.
    scratch = Path(tempfile.mkdtemp(dir=kept))
    scratch.chmod(0o755)
    try:
        with launching(scratch):
            _launch(plan, runs, watch, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _launch(plan: Plan, runs: tuple[Run, ...], watch: Watch, scratch: Path) -> None:
    stop = scratch / "stop"
    teller = _Teller(plan, runs, watch)
    settings = plan.spec.ray
    tuner = tune.Tuner(
        tune.with_resources(Trial, _bundles),
        param_space={"run": tune.grid_search([trial_config(plan, run, scratch) for run in runs])},
        tune_config=tune.TuneConfig(
            reuse_actors=True, max_concurrent_trials=cluster.room_for_gangs(plan, runs),
            scheduler=_scheduler(plan, runs, scratch),
            trial_name_creator=_id, trial_dirname_creator=_id,
        ),
        run_config=tune.RunConfig(
            name="tune", storage_path=str(scratch), verbose=0, callbacks=[teller],
            stop=_Stop(stop), checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
        ),
    )  # fmt: skip
    # A Ray that has died would never say that the runs have stopped.
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
        teller.look()
    if stop.exists():
        raise Interrupted


def trial_config(plan: Plan, run: Run, scratch: Path) -> dict[str, Any]:
    """What a trial has to know: the run's folder and files, and what it needs."""
    rule, needs = plan.spec.early_stop, cluster.needs(plan, run)
    return {
        "id": run.id, "folder": str(plan.run_folder(run).path), "scratch": str(scratch),
        "stop": str(scratch / "stop"), "verdict": str(_verdict(scratch, run.id)),
        "metric": rule.metric if rule else None, "epochs": run.config.epochs,
        "processes": cluster.processes(plan, run), "cpus": needs["CPU"], "gpus": needs["GPU"],
    }  # fmt: skip


def _bundles(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial's actor takes.

    Ray Train asks for the processes of a gang by itself; its actor is to take no processor from
    them, and nothing at all is what Tune refuses.
    """
    run = config["run"]
    if run["processes"] > 1:
        return tune.PlacementGroupFactory([{"memory": 1}])
    return tune.PlacementGroupFactory([{"CPU": run["cpus"], "GPU": run["gpus"]}])


def _id(trial: TuneTrial) -> str:
    return trial.config["run"]["id"]


def _last_error(trial: TuneTrial) -> str:
    """The last line of what Ray says, without colours."""
    file = Path(trial.error_file) if trial.error_file else None
    lines = last_lines(file, 1) if file else []
    return lines[0].strip() if lines else "its actor has died"


def _verdict(scratch: Path, run: str) -> Path:
    return scratch / f"{run}.verdict"


def _scheduler(plan: Plan, runs: tuple[Run, ...], scratch: Path) -> Any:
    rule = plan.spec.early_stop
    if rule is None:
        return None

    def tell(run: str, said: dict[str, Any]) -> None:
        write_json(_verdict(scratch, run), said)

    return scheduler.make_scheduler(plan, rule, runs, tell)


class _Stop(tune.Stopper):
    """Ends the whole when it is asked for; single runs end by themselves."""

    def __init__(self, wish: Path) -> None:
        self.wish = wish

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.wish.exists()


class _Teller(tune.Callback):
    """Keeps what is going on, for who watches."""

    def __init__(self, plan: Plan, runs: tuple[Run, ...], watch: Watch) -> None:
        self.plan, self.watch = plan, watch
        self.runs = {run.id: run for run in runs}
        self.progress = Progress(deque(runs))
        self.leaving: list[Run] = []  # whose process may still write its last checkpoint

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps itself on the disk, to be restored; a terminal cannot be, and nothing of it is.
        return tune.Callback, ()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self.look()

    def look(self) -> None:
        """Show what is going on; of runs that were ended as soon as they have said their word."""
        for run in [run for run in self.leaving if not self.plan.run_folder(run).locked()]:
            self.leaving.remove(run)
            del self.progress.active[run]
            self.progress.ended.append(run)
        self.watch(self.progress)

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        run = self.runs[_id(trial)]
        if run in self.progress.waiting:  # and not at its second start
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
        if folder.word().state in ("pending", "running") and not folder.locked():
            message = f"Ray has lost the run's process: {_last_error(trial)}"
            folder.write_status("failed", **folder.progress(), message=message, cause="node")
        self._ended(run)

    def _ended(self, run: Run) -> None:
        if run in self.progress.active and run not in self.leaving:
            self.leaving.append(run)
