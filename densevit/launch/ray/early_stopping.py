"""Early stopping: Tune's schedulers, fed first with the results in the run directories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from densevit.runs.metrics_file import finite, read_metrics
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import EarlyStop

Known = Callable[[str], list[dict[str, Any]]]  # run id to its earlier validation results
Tell = Callable[[str, dict[str, Any]], None]  # run id, and why it is stopped


def make_scheduler(plan: Plan, rule: EarlyStop, runs: Iterable[Run], tell: Tell) -> TrialScheduler:
    """Return the scheduler of the sweep's rule; it calls `tell` before it stops one of `runs`."""
    by_id = {run.id: run for run in plan.runs}
    most = max(run.config.epochs for run in plan.runs)
    settings: dict[str, Any] = {
        "time_attr": "epoch", "metric": rule.metric, "mode": rule.mode,
        "grace_period": rule.grace_epochs,
    }  # fmt: skip
    kind: type[_Asha] | type[_Median] = _Median
    if rule.scheduler == "asha":
        kind = _Asha
        settings |= {"reduction_factor": rule.reduction, "stop_last_trials": False}
        settings["max_t"] = max(most, rule.grace_epochs)
    scheduler = kind(rule, lambda id: _known(plan, rule, by_id[id]), tell, **settings)
    going = {run.id for run in runs}
    for run in plan.runs:
        if run.id not in going:
            scheduler.on_trial_add(
                None, Trial("densevit", config={"run": {"id": run.id}}, stub=True)
            )
    return scheduler


def _known(plan: Plan, rule: EarlyStop, run: Run) -> list[dict[str, Any]]:
    """Return a run's validation results so far, one per epoch without the last epoch."""
    lines = read_metrics(plan.run_folder(run).metrics_file)[0]
    validated = ((line["epoch"], finite(line.get(rule.metric))) for line in lines)
    by_epoch = {epoch: value for epoch, value in validated if value is not None}
    return [
        {"epoch": epoch, rule.metric: value}
        for epoch, value in sorted(by_epoch.items())
        if epoch < run.config.epochs
    ]


class _Informed(TrialScheduler):
    """A scheduler that knows earlier results of its runs and reports why it stops one."""

    def __init__(self, rule: EarlyStop, known: Known, tell: Tell, **settings: Any) -> None:
        super().__init__(**settings)  # type: ignore[no-untyped-call]  # Ray's have no hints
        self.rule, self.known, self.tell = rule, known, tell
        self.doomed: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.known(_run(trial)):
            if super().on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
                self.doomed.add(trial.trial_id)
                break  # the median rule must not see a stopped run again

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self.rule.metric not in result:  # the end of a run is a result too
            return TrialScheduler.CONTINUE
        decision = TrialScheduler.STOP
        if trial.trial_id not in self.doomed:
            decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.doomed.add(trial.trial_id)
            self.tell(_run(trial), _verdict(self.rule, result))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if self.rule.metric in result:  # the median rule requires it
            super().on_trial_complete(tune_controller, trial, result)


class _Asha(_Informed, ASHAScheduler):
    pass


class _Median(_Informed, MedianStoppingRule):
    def _on_insufficient_samples(self, *_: Any) -> str:
        """Continue: pausing a run until others have results to compare with would interrupt it."""
        return TrialScheduler.CONTINUE


def _run(trial: Trial) -> str:
    """Return the id of a trial's run."""
    return str(trial.config["run"]["id"])


def _verdict(rule: EarlyStop, result: dict[str, Any]) -> dict[str, Any]:
    """Return what a stopped run records: the rule, and why it stopped the run."""
    value, epoch = result[rule.metric], result["epoch"]
    why = f"is not among the best 1/{rule.reduction:g} of the runs that reached this epoch"
    if rule.scheduler == "median":
        why = "is behind the median of the others"
    return {
        "rule": rule.model_dump(exclude={"allow_biased"}),
        "message": f"{rule.scheduler}: {rule.metric} {value:.4g} after epoch {epoch:g} {why}",
    }
