"""A refresh queries Slurm once, however many runs there are."""

import os
import shlex
import sys

import pytest

from densevit.launch.launchers import observe
from densevit.launch.slurm import commands, submissions
from densevit.launch.slurm.attempts import Limits
from densevit.launch.slurm.submissions import Chunk, Submission
from densevit.sweep.plan import make_plan

RUNS = 200


@pytest.fixture
def sweep(tmp_path):
    rates = ", ".join(f"{n}.0e-4" for n in range(1, RUNS // 2 + 1))
    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: many\ngrid: {{learning_rate: [{rates}]}}\nseeds: 2\n")
    plan = make_plan(file, tmp_path / "out")
    assert len(plan.runs) == RUNS
    for number, part in enumerate((plan.runs[:150], plan.runs[150:])):
        submissions.write(
            Submission(
                folder=plan.folder / "submissions" / str(number), sweep="many", user=commands.user(),
                resources={}, tasks=[[run.id] for run in part], canary=False, code="",
                chunks=(Chunk(f"many-{number}", 0, len(part), str(40 + number)),),
                limits=Limits(3, 5), signal_seconds=60,
            )
        )  # fmt: skip
    return plan


def fake(folder, monkeypatch, name, lines):
    """Make a program that prints lines and records its calls."""
    text = "\n".join(lines)
    program = folder / name
    program.write_text(
        f"#!{sys.executable}\nopen({str(folder / f'{name}.calls')!r}, 'a').write('x')\n"
        f"print({text!r})\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("ended", [0, 60])
def test_one_call_of_squeue_and_at_most_one_of_sacct(sweep, tmp_path, monkeypatch, ended):
    # squeue lists array elements one by one, sacct in ranges if it can.
    queue = [f"40|{n}|{1000 + n}|RUNNING|None|node1|many-0" for n in range(150 - ended)]
    queue += [f"41|{n}|41|PENDING|Priority||many-1" for n in range(50)]
    fake(tmp_path, monkeypatch, "squeue", queue)
    fake(tmp_path, monkeypatch, "sacct", [f"40_[{150 - ended}-149%7]|CANCELLED by 0|"])
    states = [standing.state for standing in observe(sweep).runs.values()]
    assert states.count("running") == 150 - ended
    assert states.count("queued") == 50
    assert states.count("cancelled") == ended
    assert (tmp_path / "squeue.calls").read_text() == "x"
    assert (tmp_path / "sacct.calls").exists() == bool(ended)
    if ended:
        assert (tmp_path / "sacct.calls").read_text() == "x"


def test_without_slurm_on_the_path_nothing_is_known_and_nothing_failed(sweep, monkeypatch):
    monkeypatch.setenv("PATH", shlex.quote("/nowhere"))
    observed = observe(sweep)
    assert {standing.state for standing in observed.runs.values()} == {"unknown"}
    assert observed.silent == "Slurm does not answer: squeue is not on the PATH"
