"""The list of launchers: one that the package does not know is a record in the list, and no more."""

import json
import shlex
from dataclasses import replace

import forked
import pytest

from densevit.cli.main import main_sweep
from densevit.config import yaml_file
from densevit.launch import launchers
from densevit.launch.launcher import CostSetting, JobQueue, Launcher, LaunchOptions
from densevit.launch.machine import Place
from densevit.launch.process import training_command
from densevit.launch.run_state import Observed, RunState
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError
from densevit.utils.files import write_json


def write_commands(plan, runs, options, watch):
    """Write the commands of runs to a file instead of starting them."""
    lines = [shlex.join(training_command(plan.run_folder(run))) for run in runs]
    (plan.folder / "commands").write_text("".join(f"{line}\n" for line in lines))
    return ()


COMMANDS = Launcher("commands", write_commands, foreground=False)


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """A function that runs `densevit-sweep` with that launcher in the list."""
    monkeypatch.setattr(launchers, "LAUNCHERS", (*launchers.LAUNCHERS, COMMANDS))

    def run(*arguments):
        capsys.readouterr()
        code = main_sweep([*map(str, arguments), "--outputs", str(tmp_path / "out")])
        return code, *capsys.readouterr()

    return run


def write_sweep(tmp_path, **parts):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml_file.dump({"name": "little", **parts}))
    return file


def test_a_launcher_of_another_kind_is_one_record(call, tmp_path, tiny):
    grid = {"cl_mode": ["none", "global"]}
    file = write_sweep(tmp_path, launcher="commands", fixed=tiny, grid=grid)
    code, said, errors = call("run", file, "--dry-run")
    assert (code, errors) == (0, "")
    assert "2 to start" in said
    assert not (tmp_path / "out").exists()

    code, said, errors = call(file)
    assert (code, errors) == (0, "")
    assert "0 finished before, 2 to run" in said
    plan = make_plan(file, tmp_path / "out")
    lines = (plan.folder / "commands").read_text().splitlines()
    folders = [plan.run_folder(run).path for run in plan.runs]
    assert [shlex.split(line)[1:] for line in lines] == [
        ["-m", "densevit", "train", "--run-dir", str(folder)] for folder in folders
    ]
    assert [status.state for status in plan.statuses().values()] == ["pending", "pending"]


def test_a_run_of_its_file_is_finished_in_the_status(call, tmp_path, tiny):
    file = write_sweep(tmp_path, launcher="local", fixed={**tiny, "epochs": 1, "cl_mode": "none"})
    assert call(file, "--launcher", "commands")[0] == 0
    commands = tmp_path / "out" / "sweeps" / "little" / "commands"
    (command,) = map(shlex.split, commands.read_text().splitlines())
    assert command[1:3] == ["-m", "densevit"]
    done = forked.done(command[3:])
    assert done.returncode == 0, done.stderr + done.stdout
    status = json.loads(call("status", file, "--json")[1])
    assert [run["state"] for run in status["runs"]] == ["finished"]


def test_the_end_of_a_sweep_is_notified_once(call, tmp_path, monkeypatch, tiny):
    def finish(plan, runs, options, watch):
        for run in runs:
            plan.run_folder(run).write_status("finished" if ok else "failed")
            if ok:
                results = {"benchmarks": {"val": {}, "dark": {}}}
                write_json(plan.run_folder(run).results_file, results)
                plan.run_folder(run).metrics_file.write_text("")
        return ()

    here = Launcher("here", finish, foreground=True)
    monkeypatch.setattr(launchers, "LAUNCHERS", (here,))
    monkeypatch.setattr("densevit.cli.sweep_run.finish_sweep", lambda *_: 0 if ok else 1)
    command = f"echo {{state}} >> {tmp_path}/told"
    file = write_sweep(tmp_path, launcher="here", fixed=tiny, notify=command)
    for ok in (False, True, True):
        assert call(file, "--no-tracking")[0] == (0 if ok else 1)
    assert (tmp_path / "told").read_text() == "failed\nfinished\n"


@pytest.mark.parametrize("command", ["run", "plan", "status", "explain", "report"])
def test_a_wrong_name_is_refused_by_every_command(call, tmp_path, command):
    file = write_sweep(tmp_path, launcher="comands")
    code, _, error = call(command, file, *(["x"] if command == "explain" else []))
    assert code == 2
    nearest = f"{file}: launcher: 'comands' is not valid; did you mean 'commands'?"
    assert error.strip().removeprefix("densevit-sweep: ") == nearest


def test_what_a_launcher_cannot_do_names_those_that_can(call, tmp_path):
    rule = {"scheduler": "asha", "allow_biased": True}
    file = write_sweep(tmp_path, launcher="commands", early_stop=rule)
    told = "early_stop: only the launcher ray ends runs early, and this one is commands"
    assert told in call(file)[2]
    code, _, error = call(write_sweep(tmp_path), "--profile", "mine")
    assert code == 2
    assert "--profile: only the launcher slurm reads a profile, and this one is local" in error


def test_an_estimate_is_measured_where_the_launcher_says(call, tmp_path, tiny, monkeypatch):
    def measure(source, target):
        seconds = {"startup": 0.0, "look": 0.0, "evaluation": 0.0, "evaluated_picture": 0.0}
        images = {"train": 42, "val": 15, "dark": 12}
        found = {"device": "Thing", "on_gpu": True, "processes": 1, "steps": [360.0] * 20}
        keys = [item["key"] for item in json.loads(source.read_text())]
        target.write_text(
            json.dumps({key: {**found, **seconds, "pictures": images} for key in keys})
        )
        return 0

    setting = lambda plan, options: CostSetting(plan, Place("there", measure), at_once=3)  # noqa: E731
    elsewhere = replace(COMMANDS, cost_setting=setting)
    monkeypatch.setattr(launchers, "LAUNCHERS", (elsewhere,))
    fixed = {**tiny, "device": "auto", "cl_mode": "none"}
    file = write_sweep(tmp_path, launcher="commands", fixed=fixed, seeds=6)
    code, said, _ = call("plan", file, "--estimate")
    # Six runs of two epochs of five steps, each step a tenth of an hour, three at a time.
    assert (code, said.splitlines()[0]) == (0, "estimated cost: 6 runs, 6 GPU-hours (6 to 6)")
    assert "wall time: 2.0 h (2.0 h to 2.0 h), 3 at a time" in said
    code, _, error = call(file, "--budget", "5gpuh")
    assert code == 2
    assert "would cost about 6 GPU-hours (up to 6), more than the 5 of the budget" in error


class Jobs:
    """A queue in which each run has a job, submitted at `created`."""

    def __init__(self, created, state="queued", silent=""):
        self.created, self.state, self.silent = created, state, silent
        self.cancelled = []

    def queue(self):
        return JobQueue(None, self.observe, self.find, self.cancelled.extend, None)

    def observe(self, plan, recorded):
        assert recorded.keys() == {run.id for run in plan.runs}
        states = {run: RunState(self.state, job="7", submission=self) for run in recorded}
        return Observed(states, self.silent)

    def find(self, plan):
        return {run.id: "7" for run in plan.runs}


def with_queues(monkeypatch, *jobs):
    made = [replace(COMMANDS, name=f"l{n}", jobs=each.queue()) for n, each in enumerate(jobs)]
    monkeypatch.setattr(launchers, "LAUNCHERS", (launchers.LOCAL, *made))


def test_every_queue_is_asked_and_the_newest_job_of_a_run_counts(monkeypatch, tmp_path):
    plan = make_plan(write_sweep(tmp_path, seeds=2), tmp_path / "out")
    older, newer = Jobs(1.0, "lost", "A does not answer"), Jobs(2.0, "running")
    for order in ((older, newer), (newer, older)):
        with_queues(monkeypatch, *order)
        observed = launchers.observe(plan)
        assert [state.state for state in observed.runs.values()] == ["running", "running"]
        assert observed.silent == "A does not answer"


def test_cancel_reaches_the_queue_that_has_the_job(monkeypatch, tmp_path, capsys):
    file = write_sweep(tmp_path, seeds=2)
    jobs = Jobs(1.0)
    with_queues(monkeypatch, jobs)
    outputs = ["--outputs", str(tmp_path / "out")]
    assert main_sweep(["cancel", str(file), "--yes", *outputs]) == 0
    assert jobs.cancelled == ["7"]
    assert "cancelled 1 job;" in capsys.readouterr().out


def test_a_name_that_is_in_the_list_is_found():
    assert [launchers.find_launcher(x.name, "x") for x in launchers.LAUNCHERS] == [
        launchers.LOCAL, launchers.SLURM, launchers.RAY,
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^--launcher: 'slrum' is not valid; did you mean 'slurm'"):
        launchers.find_launcher("slrum", "--launcher")


def test_a_record_needs_a_name_a_way_to_launch_and_its_kind(tmp_path):
    """All else has a default that fits a launcher on this machine."""
    plan = make_plan(write_sweep(tmp_path), tmp_path / "out")
    assert COMMANDS.here(plan)
    assert COMMANDS.check(plan, plan.runs, LaunchOptions()) == []
    setting = COMMANDS.cost_setting(plan, LaunchOptions(jobs=2))
    assert (setting.plan, setting.at_once) == (plan, 2)
    assert not plan.outputs.exists()
