"""A sweep on this machine, as a user runs it: real processes, real trainings of a second.

One test starts the command and its run in new processes, as a user does. In the others the launcher
is this process, or one forked for it, and its runs are forked (see `forked`): importing torch takes
longer than everything else in these tests.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from holding import hold, let_go
from pictures import write_images

from densevit.cli.main import main, main_sweep
from densevit.config import yaml_file
from densevit.launch.launchers import observe
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.plan import make_plan
from densevit.utils.errors import EXIT_CARRY_ON


@pytest.fixture
def sweep(tmp_path, tiny):
    """Return a sweep file of two cells and two seeds over the tiny run."""
    return write_sweep(tmp_path, tiny, grid={"cl_mode": ["none", "global"]}, seeds=2)


def write_sweep(tmp_path, tiny, **parts):
    (tmp_path / "base.yaml").write_text(yaml_file.dump(tiny))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml_file.dump({"name": "little", "base": "base.yaml", **parts}))
    return file


# As the installed program `densevit-sweep`, which has no place of modules in the current folder.
COMMAND = [
    sys.executable,
    "-P",
    "-c",
    "import sys; from densevit.__main__ import main_sweep; sys.exit(main_sweep())",
]


def run(*arguments, cwd=None):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=cwd
    )


@pytest.fixture
def here(monkeypatch, capsys):
    """Return a function that runs `densevit-sweep` in this process, with forked runs and reports
    without figures, and returns its exit code, output and errors."""
    monkeypatch.setattr("densevit.launch.local.start_training", forked.start_training)
    monkeypatch.setattr("densevit.results.report.figures.draw_all", lambda *_: {})

    def call(*arguments):
        capsys.readouterr()
        code = main_sweep([*map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def status(file, outputs, capsys):
    assert main_sweep(["status", str(file), "--outputs", str(outputs), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_sweep_runs_reports_and_runs_nothing_twice(tmp_path, tiny, capsys, here):
    tiny |= {"epochs": 1}
    sweep = write_sweep(tmp_path, tiny, grid={"cl_mode": ["none"]})
    outputs = tmp_path / "out"
    before = status(sweep, outputs, capsys)
    assert before["counts"].pop("pending") == 1
    assert set(before["counts"].values()) == {0}
    assert not outputs.exists(), "looking creates nothing"
    # Modules in the current folder, which may be somebody else's, are not those that runs import.
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("densevit", "torch", "yaml", "json"):
        (shared / f"{name}.py").write_text("raise SystemExit('not meant')\n")
    done = run(sweep, "--jobs", 2, "--outputs", outputs, "--no-tracking", cwd=shared)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "1 run in 1 cell: 0 finished before, 1 to run" in done.stdout
    after = status(sweep, outputs, capsys)
    assert after["counts"]["finished"] == 1
    assert {r["state"] for r in after["runs"]} == {"finished"}
    assert {"id", "cell", "seed", "config", "resources", "state"} < after["runs"][0].keys()
    report = outputs / "sweeps" / "little" / "report"
    table = (report / "table.md").read_text()
    assert "missing" not in table
    assert table.count("1/1") == 1
    starts = [f.read_text() for f in sorted(outputs.glob("runs/*/provenance.json"))]

    code, said, _ = here(sweep, "--jobs", 2, "--outputs", outputs, "--no-tracking")
    assert code == 0
    assert "1 finished before, 0 to run" in said
    assert (report / "table.md").read_text() == table
    assert [f.read_text() for f in sorted(outputs.glob("runs/*/provenance.json"))] == starts

    # One more value and seed: only the new runs are trained. A lone run of the same settings is the
    # same.
    write_sweep(tmp_path, tiny, grid={"cl_mode": ["none", "dense"]}, seeds=2)
    code, said, _ = here(sweep, "--outputs", outputs, "--no-tracking", "--jobs", 2)
    assert code == 0
    assert "1 finished before, 3 to run" in said
    assert (report / "table.md").read_text().count("2/2") == 2
    lone = ["train", "--config", str(tmp_path / "base.yaml"), "--cl-mode", "none", "--seed", "1"]
    assert main([*lone, "--outputs", str(outputs), "--no-tracking"]) == 0
    assert len(list(outputs.glob("runs/*"))) == 4
    lone_starts = [f.read_text() for f in outputs.glob("runs/*/provenance.json")]
    assert set(starts) < set(lone_starts), "no start was added to the one that had ended"


def test_a_failed_run_stops_no_other_and_shows_its_log(tmp_path, tiny, here):
    bad = write_sweep(
        tmp_path,
        {**tiny, "grad_clip": 0.0, "cl_mode": "none"},
        grid={"learning_rate": [1e30, 1e-3]},
    )
    outputs = tmp_path / "out"
    code, said, _ = here(bad, "--outputs", outputs, "--no-tracking")
    assert code == 1
    assert "failed" in said
    assert "gradient was not finite in" in said
    assert "log.txt" in said
    assert "1 of 2 runs are not finished" in said
    table = (outputs / "sweeps" / "little" / "report" / "table.md").read_text()
    assert "missing" in table
    assert "1/1" in table
    code, said, _ = here("retry", bad, "--class", "oom", "--outputs", outputs, "--no-tracking")
    assert (code, said) == (0, "nothing to start again: no such run has failed\n")
    code, said, _ = here("retry", bad, "--class", "nan", "--outputs", outputs, "--no-tracking")
    assert code == 1
    assert "1 finished before, 1 to run" in said
    retry = ["retry", bad, "--failed", "--outputs", outputs]
    code, _, wrong = here(*retry, "--set", "resources.memory=1G")
    assert code == 2
    assert "--set resources.memory: unknown key; " in wrong
    code, _, wrong = here(*retry, "--set", "temperature=1")
    assert code == 2
    assert "--set temperature: is part of the run's identity and cannot change; " in wrong
    _, told, _ = here("status", bad, "--outputs", outputs)
    assert "1 finished, 1 failed" in told
    assert "1 of 1 failed (nan): the loss or its gradient" in told
    assert "gradient was not finite in" in told


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


STEPS = 2 * 5  # two epochs of 42 images, eight at a time


@pytest.fixture
def plan(tmp_path, tiny):
    """Return a plan of two runs that are held in their second epoch."""
    file = write_sweep(tmp_path, {**tiny, "log_every": 1}, grid={"cl_mode": ["none", "global"]})
    hold(tmp_path / "out", 7)
    yield make_plan(file, tmp_path / "out")
    let_go(tmp_path / "out")


def words(plan):
    return f"{plan.spec.file} --jobs 2 --outputs {plan.outputs} --no-tracking".split()


def start(plan, said):
    return forked.Forked(words(plan), said, forked.sweep)


def wait_held(plan):
    wait_for(lambda: [status.step for status in plan.statuses().values()] == [7, 7])


def again(here, plan):
    let_go(plan.outputs)
    return here(*words(plan))[0]


def hearing(arguments):
    """A shell makes its background jobs ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return forked.sweep(arguments)


def test_ctrl_c_stops_the_runs_and_a_repeat_carries_on(plan, here, tmp_path):
    sweep = forked.Forked(words(plan), tmp_path / "said", hearing)
    wait_held(plan)
    sweep.send_signal(signal.SIGINT)
    assert sweep.wait() == EXIT_CARRY_ON
    assert "run the same command to resume" in sweep.output()
    assert [s.state for s in plan.statuses().values()] == ["cancelled", "cancelled"]
    assert not any(plan.run_folder(run).locked() for run in plan.runs)
    assert again(here, plan) == 0
    check_whole(plan)


def test_runs_of_a_killed_launcher_are_found_and_not_started_twice(plan, tmp_path):
    sweep = start(plan, tmp_path / "said")
    wait_held(plan)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    second = start(plan, tmp_path / "second")
    # It has tried both, and each log says that another process has the run.
    logs = [plan.run_folder(run).log_file for run in plan.runs]
    wait_for(lambda: all("another process is working" in log.read_text() for log in logs))
    let_go(plan.outputs)
    assert second.wait() == 0
    check_whole(plan)
    for item in plan.runs:
        starts = json.loads(plan.run_folder(item).provenance_file.read_text())["starts"]
        assert len(starts) == 1


def test_a_killed_run_is_failed_and_a_repeat_carries_on(plan, here, tmp_path):
    sweep = start(plan, tmp_path / "said")
    wait_held(plan)
    os.kill(plan.run_folder(plan.runs[0]).status().pid, signal.SIGKILL)
    let_go(plan.outputs)
    assert sweep.wait() == 1
    assert "signal SIGKILL" in sweep.output()
    assert [s.state for s in plan.statuses().values()] == ["failed", "finished"]
    assert again(here, plan) == 0
    check_whole(plan)


@pytest.mark.parametrize("twice", [False, True])
def test_a_run_whose_folder_is_removed_fails_and_writes_nothing_more(plan, here, tmp_path, twice):
    sweep = start(plan, tmp_path / "said")
    wait_held(plan)
    old = plan.run_folder(plan.runs[0])
    shutil.rmtree(old.path)
    if twice:  # the same command trains it anew, before the first has noticed
        second = start(plan, tmp_path / "second")
        wait_held(plan)
    let_go(plan.outputs)
    if twice:
        sweep.wait()
        assert second.wait() == 0
        assert len(json.loads(old.provenance_file.read_text())["starts"]) == 1
    else:
        assert sweep.wait() == 1
        assert f"{old.path} was removed meanwhile" in sweep.output()
        assert not old.path.exists()
        assert again(here, plan) == 0
    check_whole(plan)


def test_a_run_that_lacks_a_file_is_not_finished(plan, here):
    let_go(plan.outputs)
    assert again(here, plan) == 0
    plan.run_folder(plan.runs[0]).metrics_file.unlink()
    assert [state.state for state in observe(plan).runs.values()] == ["pending", "finished"]


def check_whole(plan):
    """Check that every run is finished, with each step's metrics exactly once."""
    for item in plan.runs:
        folder = plan.run_folder(item)
        assert folder.status().state == "finished"
        lines, _ = read_metrics(folder.metrics_file)
        assert [x["step"] for x in lines if "train/loss" in x] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"model_kwargs": {"img_size": 32, "patch_size": 8, "dpeth": 2}},
            "model_kwargs: dpeth: unknown to vit_tiny_patch16_224; did you mean 'depth'?",
        ),
        ({"model_name": "resnet18", "model_kwargs": {}}, "not a plain Vision Transformer"),
        ({"sampled_patches": 17}, "sampled_patches: 17 is more than the 16 patches"),
        ({"data_dir": "gone"}, "gone: no such folder"),
        ({"benchmarks": {"dark": "gone"}}, "benchmarks: dark: "),
        ({"batch_size": 64}, "batch_size: 64 is more than the 42 training images"),
        ({"device": "cuda"}, "device: cuda: torch sees no GPU here"),
        ({"cl_mode": "joint", "sampled_patches": 17}, "17 is more than the 16 patches"),
        ({"joint_dense_weight": 1.5}, "joint_dense_weight: 1.5 is out of range"),
        ({"temperature": 0}, "temperature: 0 is out of range; it must be greater than 0"),
        ({"temperature": -0.1}, "temperature: -0.1 is out of range"),
        ({"queue_size": 0}, "queue_size: 0 is out of range; it must be at least 1"),
        ({"lambda_weight": -0.1}, "lambda_weight: -0.1 is out of range"),
        ({"correspondence_features": "geometri"}, "did you mean 'geometry'?"),
        ({"on_collapse": "abort"}, "on_collapse: 'abort' is not valid"),
        ({"lambda_weight": 2}, "lambda_weight: 2 is out of range"),
        ({"model_name": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'?"),
        ({"model_kwargs": {"img_size": 33, "patch_size": 8}}, "not divisible"),
    ],
    ids=str,
)
def test_what_cannot_work_creates_nothing(tmp_path, tiny, capsys, change, wanted):
    file = write_sweep(tmp_path, {"cl_mode": "dense", **tiny, **change})
    outputs = tmp_path / "out"
    for command in (
        lambda: main_sweep([str(file), "--outputs", str(outputs)]),
        lambda: main(["train", "--config", str(tmp_path / "base.yaml"), "--outputs", str(outputs)]),
    ):
        assert command() == 2
        said = capsys.readouterr().err.strip()
        assert wanted in said
        assert "\n" not in said
    assert not outputs.exists()


def test_a_class_that_is_missing_in_a_benchmark_is_named(tmp_path, tiny, capsys):
    write_images(tmp_path / "shifted", {"red": 1, "green": 1, "blau": 1})
    file = write_sweep(tmp_path, {**tiny, "benchmarks": {"shifted": str(tmp_path / "shifted")}})
    assert main_sweep([str(file), "--outputs", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "lacks blue and has blau besides" in said
    assert not (tmp_path / "out").exists()


def test_a_launcher_that_is_not_installed_says_how_it_will_be(tmp_path, sweep, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main_sweep([str(sweep), "--launcher", "ray", "--outputs", str(tmp_path / "o")]) == 2
    assert (
        "launcher ray: Ray is not installed; pip install 'densevit[ray]'" in capsys.readouterr().err
    )
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["train", "--queue-sizes", "5"], "--queue-sizes: unknown; did you mean '--queue-size'?"),
        (["train", "--queue-size", "many"], "queue_size: 'many' must be a whole number"),
        (["train", "--temperature", "1e-3x"], "temperature: '1e-3x' must be a number"),
        (["train", "--model-kwargs", "{a: 1"], "--model-kwargs '{a: 1'"),
        (["train", "--config", "gone.yaml"], "gone.yaml: no such file"),
        (["trian"], "trian"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(
    arguments, wanted, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr().err.strip()
    assert wanted in said
    assert "\n" not in said
    assert list(Path().iterdir()) == []


def test_flags_read_numbers_and_mappings_as_yaml_does(tmp_path, tiny):
    (tmp_path / "base.yaml").write_text(yaml_file.dump(tiny))
    flags = [
        "--learning-rate", "1e-3", "--contrastive-weight-adaptive", "--learnable-temp", "true",
        "--query-patches", "4", "--model-kwargs", "{img_size: 32, patch_size: 16, embed_dim: 32, depth: 1, num_heads: 1}",
        "--epochs", "1", "--experiment-name", "0123",
    ]  # fmt: skip
    base = [
        "train",
        "--config",
        str(tmp_path / "base.yaml"),
        "--outputs",
        str(tmp_path / "o"),
        "--no-tracking",
    ]
    assert main([*base, *flags]) == 0
    (written,) = (tmp_path / "o" / "runs").glob("*/config.yaml")
    got = yaml_file.load(written)
    assert (got["learning_rate"], got["query_patches"], got["experiment_name"]) == (
        0.001,
        4,
        "0123",
    )
    assert got["contrastive_weight_adaptive"] is True
    assert got["learnable_temp"] is True
    assert got["model_kwargs"]["patch_size"] == 16


def test_a_finished_run_is_not_reused_over_other_pictures(tmp_path, tiny, capsys):
    write_images(tmp_path / "data" / "train", {"a": 8, "b": 8})
    write_images(tmp_path / "data" / "val", {"a": 2, "b": 2}, 1)
    file = write_sweep(tmp_path, {**tiny, "data_dir": "data", "benchmarks": {}, "epochs": 1})
    lone = ["train", "--config", str(tmp_path / "base.yaml"), "--outputs", str(tmp_path / "o")]
    assert main([*lone, "--no-tracking"]) == 0
    (written,) = (tmp_path / "o" / "runs").glob("*/config.yaml")
    before = written.read_text()
    (tmp_path / "data" / "val" / "a" / "1.png").unlink()
    for again in (
        lambda: main([*lone, "--no-tracking", "--workers", "1"]),
        lambda: main_sweep([str(file), "--outputs", str(tmp_path / "o"), "--no-tracking"]),
    ):
        capsys.readouterr()
        assert again() == 2
        assert "the val images have changed" in capsys.readouterr().err
        assert written.read_text() == before


def test_what_another_sweep_adds_takes_nothing_from_a_finished_run(tmp_path, tiny, here):
    outputs = ["--outputs", tmp_path / "o", "--no-tracking"]
    one = write_sweep(tmp_path, {**tiny, "epochs": 1})
    assert here(one, *outputs)[0] == 0
    table = (tmp_path / "o" / "sweeps" / "little" / "report" / "table.md").read_text()
    write_images(tmp_path / "torn", {"red": 1, "green": 1, "blue": 1})
    (tmp_path / "torn" / "red" / "0.png").write_bytes(b"no picture")
    benchmarks = {**tiny["benchmarks"], "torn": str(tmp_path / "torn")}
    two = write_sweep(tmp_path, {**tiny, "epochs": 1, "benchmarks": benchmarks})
    assert here(two, *outputs)[0] == 2  # its images are read before anything is trained
    one = write_sweep(tmp_path, {**tiny, "epochs": 1})
    assert here("report", one, *outputs[:2])[0] == 0
    assert (tmp_path / "o" / "sweeps" / "little" / "report" / "table.md").read_text() == table


@pytest.mark.parametrize("place", ["file", "/proc/nothing"])
def test_outputs_that_cannot_be_written_are_one_line(tmp_path, sweep, capsys, place):
    (tmp_path / "file").write_text("")
    outputs = tmp_path / place if place == "file" else place
    assert main_sweep([str(sweep), "--outputs", str(outputs), "--no-tracking"]) == 2
    said = capsys.readouterr().err.strip()
    assert str(outputs) in said
    assert "\n" not in said


def test_brackets_in_words_are_no_markup(tmp_path, tiny, capsys):
    file = write_sweep(tmp_path, tiny, description="compares [/b] and [red]", include=[{"epochs": 3}],
                       exclude=[{"where": {"epochs": 9}, "because": "see [/1]"}])  # fmt: skip
    assert main_sweep(["plan", str(file)]) == 0
    said = capsys.readouterr().out
    assert "compares [/b] and [red]" in said
    assert "see [/1]" in said
