"""The jobs that `densevit-sweep cancel` cancels, and its messages about the runs."""

import pytest

from densevit.launch.cancel import cancel_sweep
from densevit.launch.slurm import commands, submissions
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.commands import Job
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.sweep.plan import make_plan
from densevit.utils.files import read_json


@pytest.fixture
def plan(tmp_path):
    """Return three runs in two jobs: in the first job one run is finished, the other one trains."""
    (tmp_path / "sweep.yaml").write_text("name: a\nfixed: {dataset: blobs}\nseeds: 3\n")
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "out")
    for run, state in zip(plan.runs, ("finished", "running", "failed"), strict=True):
        plan.run_folder(run).create(run.config)
        plan.run_folder(run).write_status(state, step=3)
    first, second, third = [run.id for run in plan.runs]
    submissions.write(
        Submission(
            folder=plan.folder / "submissions" / "s", sweep="a", user=commands.user(), resources={},
            tasks=[[first, second], [third]], chunks=(Chunk("c", 0, 2, "7"),), canary=False,
            code="", limits=Limits(3, 5), signal_seconds=60,
        )
    )  # fmt: skip
    return plan


def test_only_a_run_that_can_say_nothing_itself_is_told_as_cancelled(plan, monkeypatch):
    jobs = {"7_0": Job("7_0", "RUNNING", name="c"), "7_1": Job("7_1", "PENDING", name="c")}
    cancelled = []
    monkeypatch.setattr(commands, "queue", lambda users: jobs)
    monkeypatch.setattr(commands, "cancel", cancelled.extend)
    folders = [plan.run_folder(run) for run in plan.runs]
    with folders[1].lock() as mine:
        assert mine
        assert cancel_sweep(plan, [], yes=True) == 0
    assert cancelled == ["7_0", "7_1"]
    words = [read_json(folder.status_file) for folder in folders]
    assert [word["state"] for word in words] == ["finished", "running", "cancelled"]
    assert words[2]["step"] == 3
    assert words[2]["message"] == f"cancelled by {commands.user()}"
