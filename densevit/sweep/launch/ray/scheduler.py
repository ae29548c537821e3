"""Early stopping: Tune's schedulers, which are told first what the run directories know already."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from densevit.metricsfile import finite
from densevit.rundir import read_metrics
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan
from densevit.sweep.spec import EarlyStop

Known = Callable[[str], list[dict[str, Any]]]  # run id to what it has validated before
Tell = Callable[[str, dict[str, Any]], None]  # run id, and what is said of its end


def make_scheduler(plan: Plan, rule: EarlyStop, runs: Iterable[Run], tell: Tell) -> TrialScheduler:
    """A scheduler by the sweep's rule for `runs`, which calls `tell` before it ends one."""
    by_id = {run.id: run for run in plan.runs}
    most = max(run.config.epochs for run in plan.runs)
    given = (rule, lambda id: _known(plan, rule, by_id[id]), tell)
    common = {"time_attr": "epoch", "metric": rule.metric, "mode": rule.mode}
    if rule.scheduler == "asha":
        scheduler = _Asha(
            *given, **common, grace_period=rule.grace_epochs, reduction_factor=rule.reduction,
            max_t=max(most, rule.grace_epochs), stop_last_trials=False,
        )  # fmt: skip
    else:
        scheduler = _Median(*given, **common, grace_period=rule.grace_epochs)
    going = {run.id for run in runs}
    for run in plan.runs:
        if run.id not in going:
            scheduler.on_trial_add(
                None, Trial("densevit", config={"run": {"id": run.id}}, stub=True)
            )
    return scheduler


def _known(plan: Plan, rule: EarlyStop, run: Run) -> list[dict[str, Any]]:
    """What a run has validated so far, an entry an epoch, the last epoch left out."""
    lines = read_metrics(plan.run_folder(run).metrics_file)[0]
    told = ((line["epoch"], finite(line.get(rule.metric))) for line in lines)
    by_epoch = {epoch: value for epoch, value in told if value is not None}
    return [
        {"epoch": epoch, rule.metric: value}
        for epoch, value in sorted(by_epoch.items())
        if epoch < run.config.epochs
    ]


class _Informed:
    """A scheduler that knows what its runs have reached before, and says why it ends one."""

    def __init__(self, rule: EarlyStop, known: Known, tell: Tell, **settings: Any) -> None:
        super().__init__(**settings)
        self.rule, self.known, self.tell = rule, known, tell
        self.doomed: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.known(_run(trial)):
            if super().on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
                self.doomed.add(trial.trial_id)
                break  # whom it has ended once, the median rule is not to see again

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if self.rule.metric not in result:  # the end of a run comes as a result too
            return TrialScheduler.CONTINUE
        decision = TrialScheduler.STOP
        if trial.trial_id not in self.doomed:
            decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self.doomed.add(trial.trial_id)
            self.tell(_run(trial), _said(self.rule, result))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if self.rule.metric in result:  # the median rule takes for granted that it is
            super().on_trial_complete(tune_controller, trial, result)


class _Asha(_Informed, ASHAScheduler):
    pass


class _Median(_Informed, MedianStoppingRule):
    def _on_insufficient_samples(self, *_: Any) -> str:
        """Go on: to pause a run, so that others give something to compare with, interrupts it."""
        return TrialScheduler.CONTINUE


def _run(trial: Trial) -> str:
    """The id of a trial's run."""
    return trial.config["run"]["id"]


def _said(rule: EarlyStop, result: dict[str, Any]) -> dict[str, Any]:
    value, epoch = result[rule.metric], result["epoch"]
    why = f"is not among the best 1/{rule.reduction:g} of those that came so far"
    if rule.scheduler == "median":
        why = "is behind the median of the others"
    told = rule.model_dump(exclude={"allow_biased"})
    return {
        "rule": told,
        "message": f"{rule.scheduler}: {rule.metric} {value:.4g} after epoch {epoch:g} {why}",
    }
