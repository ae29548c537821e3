"""The command on Slurm, with the calls of Slurm's programs replaced: what it submits and says."""

import pytest

from densevit.cli.main import main_sweep
from densevit.config import yaml_file
from densevit.launch import code_snapshot
from densevit.launch.slurm import commands, launcher, limits, submit
from densevit.sweep.plan import make_plan


@pytest.fixture
def world(tmp_path, tiny, monkeypatch, capsys):
    """A function that runs `densevit-sweep`, and the runs that were submitted each time."""
    fixed = {**tiny, "cl_mode": "none"}
    resources = {"gpus": 1, "hours": 2}
    file = tmp_path / "sweep.yaml"
    file.write_text(
        yaml_file.dump({"name": "little", "launcher": "slurm", "seeds": 3, "fixed": fixed,
                        "resources": resources})
    )  # fmt: skip
    submitted, room = [], [2, 2]

    def take(plan, runs, profile, code, *, canary, tracking):
        assert (profile.throttle, code is None, canary, tracking) == (256, True, False, False)
        count = room.pop(0)
        submitted.append([run.id for run in runs[:count]])
        return [], [run.id for run in runs[count:]]

    monkeypatch.setattr(commands, "require", lambda: None)
    monkeypatch.setattr(submit, "submit", take)
    monkeypatch.setattr(limits, "longest_hours", lambda partitions: 2)
    plan = make_plan(file, tmp_path / "out")

    def call(*words):
        flags = ("--live-code", "--no-canary", "--no-tracking", "--outputs", str(plan.outputs))
        code = main_sweep(["run", str(file), *flags, *words])
        return code, *capsys.readouterr()

    return plan, call, submitted


def test_it_submits_what_is_missing_and_leaves_what_is_beyond_the_limit(world):
    plan, call, submitted = world
    code, said, _ = call("--dry-run")
    assert code == 0
    assert "3 runs in 3 jobs (gpus 1.0, hours 2.0)" in said
    assert not plan.outputs.exists()
    code, said, _ = call()
    ids = [run.id for run in plan.runs]
    assert (code, submitted) == (0, [ids[:2]])
    assert "0 finished before, 3 to run" in said
    assert "left for later: 1 run; you have as many jobs as the cluster allows" in said
    assert f"status: densevit-sweep status {plan.spec.file}" in said
    assert (plan.folder / "plan.json").exists()


def test_watching_submits_the_rest_and_ends_when_nothing_is_queued(world, monkeypatch):
    plan, call, submitted = world
    monkeypatch.setattr("densevit.results.report.figures.draw_all", lambda *_: {})
    code, said, _ = call("--watch", "--every", "1")
    ids = [run.id for run in plan.runs]
    assert submitted == [ids[:2], ids[2:]]
    assert code == 1
    assert "3 of 3 runs are not finished" in said


def test_what_is_copied_for_jobs_is_told_before_it_is(world, monkeypatch, capsys):
    plan, _, _ = world
    taken = []
    monkeypatch.setattr(launcher, "remarks", lambda package, diff: [f"diff: {diff}"])
    monkeypatch.setattr(launcher, "git_state", lambda *, diff: {"git_diff": diff})
    monkeypatch.setattr(code_snapshot, "take", lambda outputs, *, diff: taken.append(diff))
    monkeypatch.setattr(submit, "submit", lambda *_, **settings: ([], []))
    words = [str(plan.spec.file), "--outputs", str(plan.outputs), "--no-tracking"]
    for flags, told, diffs in (
        (["--dry-run"], "diff: True", []),
        ([], "diff: True", [True]),
        (["--set", "git_diff=false"], "diff: False", [True, False]),
    ):
        capsys.readouterr()
        assert main_sweep([*words, *flags]) == 0
        assert told in capsys.readouterr().out
        assert taken == diffs


def test_a_mistake_or_a_silent_slurm_is_one_line(world, monkeypatch, tmp_path):
    plan, call, submitted = world
    code, _, error = call("--profile", "mine")
    assert code == 2
    assert "profile: mine: there is no slurm/mine.yaml" in error
    assert not plan.outputs.exists(), "not even the lock of those who submit"

    def silent(*_):
        raise commands.NoAnswer("squeue did not answer within 30 s")

    monkeypatch.setattr("densevit.launch.slurm.launcher._take_over", silent)
    code, _, error = call()
    assert (code, submitted) == (75, [])
    assert "Slurm does not answer: squeue did not answer within 30 s; run the same command" in error
