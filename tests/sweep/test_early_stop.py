"""The rules of early stopping on known values, without Ray."""

import json

import pytest

from densevit.config import yaml_file
from densevit.launch.decide import decide
from densevit.launch.launchers import observe
from densevit.runs.status import Status
from densevit.sweep.plan import make_plan

pytest.importorskip("ray", reason="Ray is not installed: pip install 'densevit[ray]'")

from ray.tune.experiment import Trial

from densevit.launch.ray.early_stopping import make_scheduler

GO, STOP = "CONTINUE", "STOP"


def planned(folder, runs, **rule):
    (folder / "base.yaml").write_text("dataset: shapes\nepochs: 20\n")
    file = folder / "early.yaml"
    rule = {"scheduler": "asha", "grace_epochs": 2, "reduction": 2, "allow_biased": True} | rule
    file.write_text(yaml_file.dump({"name": "early", "base": "base.yaml", "seeds": runs,
                                   "launcher": "ray", "early_stop": rule}))  # fmt: skip
    return make_plan(file, folder / "o")


def trained(plan, run, values):
    """Write a run with these validation values, one per epoch from the first on."""
    folder = plan.run_folder(run)
    folder.create(run.config)
    lines = [json.dumps({"step": n, "epoch": n, "val/top1": v}) for n, v in enumerate(values, 1)]
    folder.metrics_file.write_text("".join(line + "\n" for line in lines))


class Judged:
    """A scheduler and its verdict on each run."""

    def __init__(self, plan, going):
        self.told = {}
        self.scheduler = make_scheduler(
            plan, plan.spec.early_stop, going, lambda run, said: self.told.update({run: said})
        )

    def add(self, run):
        trial = Trial("densevit", config={"run": {"id": run.id}}, stub=True)
        self.scheduler.on_trial_add(None, trial)
        return lambda epoch, value: self.scheduler.on_trial_result(
            None, trial, {"epoch": epoch, "val/top1": value}
        )


@pytest.mark.parametrize("name", ["asha", "median"])
def test_the_worst_is_ended_and_told_why(tmp_path, name):
    plan = planned(tmp_path, 5, scheduler=name)
    judged = Judged(plan, plan.runs)
    results = [judged.add(run) for run in plan.runs]
    for epoch in range(1, 4):
        decisions = [result(epoch, 10.0 * (5 - n)) for n, result in enumerate(results[:4])]
        assert decisions[0] == GO
        assert set(decisions) == {GO} if epoch < 2 else True
    assert results[4](1, 1.0) == GO, "within the time of grace"
    assert results[4](2, 1.0) == STOP
    said = judged.told[plan.runs[4].id]
    assert said["message"].startswith(f"{name}: val/top1 1 after epoch 2 ")
    assert said["rule"]["grace_epochs"] == 2


@pytest.mark.parametrize("name", ["asha", "median"])
def test_it_never_asks_for_a_pause(tmp_path, name):
    plan = planned(tmp_path, 3, scheduler=name)
    judged = Judged(plan, plan.runs)
    first = judged.add(plan.runs[0])
    assert [first(epoch, 50.0) for epoch in range(1, 9)] == [GO] * 8


@pytest.mark.parametrize("name", ["asha", "median"])
def test_what_was_trained_before_counts(tmp_path, name):
    plan = planned(tmp_path, 6, scheduler=name)
    for run, value in zip(plan.runs, [90, 80, 70, 60, 2, 95], strict=True):
        trained(plan, run, [value] * (20 if value > 10 else 3))
    judged = Judged(plan, plan.runs[4:])
    bad, good = judged.add(plan.runs[4]), judged.add(plan.runs[5])
    assert bad(4, 2.0) == STOP, "which the command before did not come to say"
    assert bad(5, 2.0) == STOP
    assert good(4, 95.0) == GO
    judged.scheduler.on_trial_complete(None, None, {"end": "finished"})


def test_a_lower_nll_is_better(tmp_path):
    plan = planned(tmp_path, 3, metric="val/nll")
    assert plan.spec.early_stop.mode == "min"


def test_stopped_is_settled_by_this_rule_and_by_no_other(tmp_path):
    plan = planned(tmp_path, 2)
    run = plan.runs[0]
    folder = plan.run_folder(run)
    folder.create(run.config)
    rule = plan.spec.early_stop.model_dump(exclude={"allow_biased"})
    folder.write_status("stopped", rule=rule, message="asha: ...")
    assert folder.recorded_status() == Status("stopped", message="asha: ...", updated=folder.recorded_status().updated,
                                   host=folder.recorded_status().host, pid=folder.recorded_status().pid)  # fmt: skip
    assert [r.id for r in decide(plan, observe(plan), foreground=True).stopped] == [run.id]
    longer = planned(tmp_path, 2, grace_epochs=5)
    work = decide(longer, observe(longer), foreground=True)
    assert not work.stopped
    assert [r.id for r in work.to_run] == [r.id for r in longer.runs]
