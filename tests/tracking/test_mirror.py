"""The MLflow mirror with real SQLite stores."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys

import pytest
from forkedmirror import ForkedMirror
from mlflow.tracking._tracking_service import utils as mlflow_utils
from rundirs import (
    CONFIG,
    START,
    alive,
    client_of,
    history,
    make_run,
    runs_of,
    train_lines,
    wait_for,
    write_lines,
)
from servers import points
from urllib3.connection import HTTPConnection

from densevit.runs.directory import run_folder, sweep_folder
from densevit.tracking.__main__ import main
from densevit.tracking.mirror import Messages, Mirror
from densevit.tracking.mirror_process import (
    mirror_once,
    mirroring,
    start_mirror,
    store_uri,
    up_to_date,
)
from densevit.utils.files import read_json, write_atomic

NOTHING: tuple = ([], [])


def test_moved_outputs_keep_their_artifacts_with_them(outputs, tmp_path):
    run = make_run(outputs, train_lines(1, 3))
    assert mirror_once(outputs, [run], "my-sweep") == NOTHING
    moved = outputs.rename(tmp_path / "moved")
    (outputs / "mlartifacts").mkdir(parents=True)  # as an older version would have made it again
    write_atomic(run_folder(moved, run).results_file, json.dumps({"benchmarks": {}}))
    mlflow_utils._artifact_repos_cache.clear()  # it is that of another process
    assert mirror_once(moved, [run], "my-sweep") == NOTHING
    assert not list((outputs / "mlartifacts").iterdir())
    client, child = client_of(moved), runs_of(moved)[run]
    names = {artifact.path for artifact in client.list_artifacts(child.info.run_id)}
    assert {"config.yaml", "results.json"} <= names
    assert child.info.artifact_uri.startswith((moved / "mlartifacts").as_uri() + "/")

    # Another outputs folder that uses this database keeps its own.
    (outputs / "runs").mkdir()
    location = (outputs / "mlartifacts").as_uri()
    client.create_experiment("other", artifact_location=location)
    mirror_once(moved, [run])
    assert client.get_experiment_by_name("other").artifact_location == location


def test_the_store_equals_the_files(outputs):
    lines = train_lines(1, 1500)
    lines.insert(500, {"step": 500, "epoch": 5, "time": START + 500.5, "val/top1": 30.0})
    last = {"step": 1500, "epoch": 10, "time": START + 1501.0}
    lines += [last | {"val/top1": 40.0, "val/nll": 2.0}, last | {"shapes-a/top1": 20.0}]
    first = make_run(outputs, lines, queue_size=128)
    later = {"state": "failed", "time": START + 60}
    second = make_run(outputs, train_lines(1, 3), cl_mode="none", seed=3, **later)
    assert mirror_once(outputs, [first, second], "my-sweep") == NOTHING

    parent = runs_of(outputs, "densevit.sweep")["my-sweep"]
    children = runs_of(outputs)
    assert set(children) == {first, second}
    assert parent.info.run_name == "my-sweep"
    assert parent.info.status == "FAILED"
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert children[first].info.status == "FINISHED"
    assert children[second].info.status == "FAILED"
    assert children[first].info.start_time == int(START * 1000)
    ended = [int(run_folder(outputs, run).status().updated * 1000) for run in (first, second)]
    assert [children[run].info.end_time for run in (first, second)] == ended
    assert ended[0] < ended[1]
    assert (parent.info.start_time, parent.info.end_time) == (int(START * 1000), ended[1])

    keys = {"train/loss", "train/top1", "val/top1", "val/nll", "shapes-a/top1"}
    assert set(children[first].data.metrics) == keys
    for key in keys:
        written = [(i["step"], i[key], int(i["time"] * 1000)) for i in lines if key in i]
        assert history(outputs, first, key) == sorted(written)


def test_parameters_and_tags(outputs):
    dense = make_run(outputs, [], queue_size=128, log_every=7, key_encoder="shared")
    plain = make_run(outputs, [], cl_mode="none")
    assert mirror_once(outputs, [dense, plain]) == NOTHING
    params = {run_id: run.data.params for run_id, run in runs_of(outputs).items()}
    assert params[dense]["queue_size"] == "128"
    assert params[dense]["temperature"] == "0.2"  # also at its default
    assert json.loads(params[dense]["model_kwargs"]) == CONFIG["model_kwargs"]
    assert params[dense]["seed"] == "0"
    assert "momentum" not in params[dense]  # does not apply to a shared key encoder
    assert not {"queue_size", "temperature", "lambda_weight"} & set(params[plain])
    assert not {"device", "workers", "experiment_name"} & set(params[dense])
    tags = runs_of(outputs)[dense].data.tags
    assert tags["densevit.device"] == "cpu"
    assert tags["densevit.log_every"] == "7"
    assert tags["densevit.cell"] == read_json(run_folder(outputs, dense).identity_file)["cell"]
    assert "mlflow.parentRunId" not in tags


def test_a_second_look_sends_nothing_and_up_to_date_says_so(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 20))
    assert not up_to_date(outputs, [run_id], "s")
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    assert up_to_date(outputs, [run_id], "s")
    assert not up_to_date(outputs, [run_id], "another sweep")
    file = run_folder(outputs, run_id).tracking_file
    assert mirror_once(outputs, [run_id], "s") == NOTHING  # it is the only one of its name
    before = file.read_bytes()
    monkeypatch.setattr("mlflow.MlflowClient.log_batch", _refuse)
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    assert file.read_bytes() == before
    write_lines(run_folder(outputs, run_id), [{"step": 21}], "a")
    assert not up_to_date(outputs, [run_id], "s")


def _refuse(*args, **kwargs):
    raise AssertionError("something was sent")


def test_up_to_date_does_not_import_mlflow(outputs):
    run_id = make_run(outputs, train_lines(1, 2))
    assert mirror_once(outputs, [run_id]) == NOTHING
    code = (
        "import sys; from pathlib import Path; from densevit.tracking.mirror_process import up_to_date;"
        "assert up_to_date(Path(sys.argv[1]), sys.argv[2:]); assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(outputs), run_id], check=True)


def test_new_lines_of_a_step_that_was_sent_are_not_lost(outputs):
    run_id = make_run(outputs, train_lines(1, 10), state="running")
    mirror_once(outputs, [run_id])
    more = {"step": 10, "epoch": 1, "time": START + 11}
    write_lines(run_folder(outputs, run_id), [more | {"val/top1": 5.0}], "a")
    mirror_once(outputs, [run_id])
    write_lines(run_folder(outputs, run_id), [more | {"shapes-a/top1": 6.0}], "a")
    mirror_once(outputs, [run_id])
    assert [p[:2] for p in history(outputs, run_id, "val/top1")] == [(10, 5.0)]
    assert [p[:2] for p in history(outputs, run_id, "shapes-a/top1")] == [(10, 6.0)]
    assert len(history(outputs, run_id, "train/loss")) == 10


@pytest.mark.parametrize("regrown", [40, 120])
@pytest.mark.parametrize("alive", [False, True], ids=["new mirror", "same mirror"])
def test_a_file_that_was_cut_back_gives_no_step_twice_and_loses_none(outputs, alive, regrown):
    """A resumed run cuts its file to the checkpoint and continues, before or beyond its last step."""
    run_id = make_run(outputs, train_lines(1, 60), state="failed")
    folder = run_folder(outputs, run_id)
    mirror = Mirror(outputs, store_uri(outputs), [run_id], None)
    assert mirror.update(last=False) == Messages()
    # Other times and shorter numbers: the lines no longer end at the same bytes.
    again = [i | {"train/loss": 2.0} for i in train_lines(21, regrown, offset=1000.25)]
    write_lines(folder, train_lines(1, 20) + again)
    folder.write_status("finished", started=START)
    if not alive:
        mirror = Mirror(outputs, store_uri(outputs), [run_id], None)
    assert mirror.update(last=False) == Messages()
    steps = [p[0] for p in history(outputs, run_id, "train/loss")]
    assert steps == list(range(1, max(60, regrown) + 1))
    assert up_to_date(outputs, [run_id])


def test_killed_between_sending_and_remembering(outputs):
    run_id = make_run(outputs, train_lines(1, 10), state="running")
    folder = run_folder(outputs, run_id)
    mirror_once(outputs, [run_id])
    old = folder.tracking_file.read_bytes()
    write_lines(folder, train_lines(11, 20), "a")
    mirror_once(outputs, [run_id])
    write_atomic(folder.tracking_file, old)
    write_lines(folder, train_lines(21, 25), "a")
    mirror_once(outputs, [run_id])
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 26))
    folder.tracking_file.unlink()  # found again by its tag
    mirror_once(outputs, [run_id])
    assert len(history(outputs, run_id, "train/loss")) == 25


def test_a_new_store_is_filled_from_the_files(outputs, tmp_path, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 10))
    mirror_once(outputs, [run_id])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other' / 'store.db'}")
    assert not up_to_date(outputs, [run_id])
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert len(history(outputs, run_id, "train/loss")) == 10
    assert up_to_date(outputs, [run_id])


@pytest.mark.usefixtures("forked_mirrors")
def test_a_store_that_was_deleted_is_made_again(outputs):
    run_id = make_run(outputs, train_lines(1, 10))
    assert start_mirror(outputs, [run_id], "s").stop()
    assert up_to_date(outputs, [run_id], "s")
    (outputs / "mlflow.db").unlink()
    assert not up_to_date(outputs, [run_id], "s")
    assert start_mirror(outputs, [run_id], "s").stop()
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 11))
    assert up_to_date(outputs, [run_id], "s")


def test_the_status_follows_the_run(outputs):
    run_id = make_run(outputs, train_lines(1, 2), state="cancelled")
    folder = run_folder(outputs, run_id)
    mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.status == "KILLED"
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "KILLED"
    folder.write_status("running", started=START)
    with folder.lock():
        mirror_once(outputs, [run_id], "s")
        assert runs_of(outputs)[run_id].info.status == "RUNNING"
        assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
        assert not up_to_date(outputs, [run_id], "s")
    mirror_once(outputs, [run_id], "s")  # it released its lock without recording an end
    assert runs_of(outputs)[run_id].info.status == "FAILED"
    folder.write_status("finished", started=START)
    mirror_once(outputs, [run_id], "s")
    run = runs_of(outputs)[run_id]
    assert run.info.status == "FINISHED"
    assert run.info.end_time == int(folder.status().updated * 1000)
    write_atomic(folder.results_file, "{}")  # as if another benchmark was added
    folder.write_status("finished", started=START)
    mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.end_time == int(folder.status().updated * 1000)
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


def test_pending_runs_are_not_in_the_store(outputs):
    done = make_run(outputs, train_lines(1, 2))
    assert mirror_once(outputs, [done, "0123456789ab"], "s") == NOTHING
    assert set(runs_of(outputs)) == {done}
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "SCHEDULED"
    assert up_to_date(outputs, [done, "0123456789ab"], "s")


def test_a_run_of_two_sweeps_is_one_run(outputs):
    run_id = make_run(outputs, train_lines(1, 2))
    mirror_once(outputs, [run_id], "b")
    mirror_once(outputs, [run_id], "a")
    run = runs_of(outputs)[run_id]
    assert run.data.tags["densevit.sweeps"] == "a,b"
    parents = runs_of(outputs, "densevit.sweep")
    assert run.data.tags["mlflow.parentRunId"] == parents["b"].info.run_id
    assert up_to_date(outputs, [run_id], "a")
    assert up_to_date(outputs, [run_id], "b")
    client_of(outputs).delete_run(parents["b"].info.run_id)
    mirror_once(outputs, [run_id], "c")
    parent = runs_of(outputs, "densevit.sweep")["c"].info.run_id
    assert runs_of(outputs)[run_id].data.tags["mlflow.parentRunId"] == parent


def test_numbers_that_are_none_do_not_break_the_rest(outputs):
    odd = {"step": 3, "epoch": 0, "time": START, "train/loss": math.nan, "train/top1": math.inf}
    run_id = make_run(outputs, [*train_lines(1, 2), odd, *train_lines(4, 5)])
    told = f"{run_id}: not finite: train/loss at step 3, train/top1 at step 3"
    assert mirror_once(outputs, [run_id]) == ([], [told])
    write_lines(run_folder(outputs, run_id), [{**odd, "step": 6}], "a")
    assert mirror_once(outputs, [run_id]) == NOTHING  # reported once
    values = {p[0]: p[1] for p in history(outputs, run_id, "train/loss")}
    assert math.isnan(values.pop(3))
    assert math.isnan(values.pop(6))
    assert values == {step: 1 / step for step in (1, 2, 4, 5)}
    assert history(outputs, run_id, "train/top1")[2][1] > 1e300


def test_a_damaged_run_is_told_and_the_others_are_sent(outputs):
    bad = make_run(outputs, train_lines(1, 2))
    write_atomic(run_folder(outputs, bad).metrics_file, '{"step": 1, "ti\n')
    good = make_run(outputs, train_lines(1, 2), seed=1)
    problems, _ = mirror_once(outputs, [bad, good])
    assert len(problems) == 1
    assert problems[0].startswith(bad)
    assert len(history(outputs, good, "train/loss")) == 2
    assert not up_to_date(outputs, [bad, good])


def test_the_sweeps_files_are_artifacts_of_the_parent(outputs):
    run_id = make_run(outputs, train_lines(1, 2))
    folder = sweep_folder(outputs, "s")
    write_atomic(folder / "sweep.yaml", "name: s\n")
    write_atomic(folder / "report" / "table.md", "| a |\n")
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    parent = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    listed = [*client_of(outputs).list_artifacts(parent)]
    assert {item.path for item in listed} == {"sweep.yaml", "report"}
    stored = outputs / "mlartifacts" / parent / "artifacts" / "report" / "table.md"
    assert stored.read_text() == "| a |\n"


def test_an_unreachable_store_is_one_warning(outputs, monkeypatch):
    runs = [make_run(outputs, train_lines(1, 2), seed=seed) for seed in range(3)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    tried, connect = [], HTTPConnection.connect
    with monkeypatch.context() as patched:
        patched.setattr(HTTPConnection, "connect", lambda c: tried.append(c.port) or connect(c))
        problems, _ = mirror_once(outputs, runs, "s")
    assert tried == [9, 9], "once for a run, and once to see whether it answers anything"
    assert len(problems) == 1
    assert "http://127.0.0.1:9" in problems[0]
    assert "secret" not in problems[0]
    assert not run_folder(outputs, runs[0]).tracking_file.exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirror_once(outputs, runs, "s") == NOTHING


@pytest.mark.usefixtures("forked_mirrors")
def test_a_driver_is_told_of_an_unreachable_store(new_outputs, monkeypatch, capfd):
    run_id = make_run(new_outputs, train_lines(1, 2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with mirroring(new_outputs, [run_id]):
        pass
    log = (new_outputs / "tracking.log").read_text()
    assert log.count("warning: MLflow at http://127.0.0.1:9") == log.count("\n") == 1
    assert "secret" not in log
    first, second = capfd.readouterr().err.splitlines()
    assert first == ("warning: MLflow at http://127.0.0.1:9: does not answer: connection refused")
    assert second == (
        f"warning: densevit sync {run_id} sends to MLflow what is missing there "
        f"(log: {new_outputs / 'tracking.log'})"
    )


@pytest.mark.usefixtures("forked_mirrors")
def test_a_signal_to_all_does_not_end_the_mirror_before_the_runs_last_words(outputs):
    """Slurm signals all processes of a job; the mirror waits for the driver, which waits for the
    runs."""
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    folder = run_folder(outputs, run_id)
    with folder.lock():
        mirror = start_mirror(outputs, [run_id], "s")
        wait_for(folder.tracking_file.exists)
        assert runs_of(outputs)[run_id].info.status == "RUNNING"
        for number in (signal.SIGUSR2, signal.SIGTERM):
            mirror.process.send_signal(number)
        write_lines(folder, train_lines(6, 9), "a")
        folder.write_status("cancelled", started=START)
    assert mirror.stop()
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 10))
    assert runs_of(outputs)[run_id].info.status == "KILLED"
    assert up_to_date(outputs, [run_id], "s")
    assert mirror.log.read_text() == ""


def impatient(arguments):
    from densevit.tracking import __main__ as tracking

    tracking.GRACE = 0.2
    return tracking.main(arguments)


@pytest.mark.usefixtures("forked_mirrors")
def test_a_signal_ends_the_mirror_when_the_driver_does_not_end(outputs, monkeypatch):
    monkeypatch.setattr(ForkedMirror, "work", staticmethod(impatient))
    run_id = make_run(outputs, train_lines(1, 5))
    process = start_mirror(outputs, [run_id]).process
    wait_for(run_folder(outputs, run_id).tracking_file.exists)
    process.terminate()
    assert process.wait(120) == 0


def test_the_mirror_ends_with_its_driver(outputs):
    run_id = make_run(outputs, train_lines(1, 5))
    code = (
        "import os, sys; from pathlib import Path; from densevit.tracking.mirror_process import start_mirror;"
        "m = start_mirror(Path(sys.argv[1]), sys.argv[2:]); print(m.process.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    driver = subprocess.run(
        [sys.executable, "-c", code, str(outputs), run_id], stdout=subprocess.PIPE, check=False
    )
    assert driver.returncode == -9
    wait_for(lambda: not alive(int(driver.stdout)))
    assert up_to_date(outputs, [run_id])


@pytest.mark.usefixtures("forked_mirrors")
def test_while_a_driver_works_and_not_when_all_was_sent_before(outputs, capfd):
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    with mirroring(outputs, [run_id], "s"):
        run_folder(outputs, run_id).write_status("finished", started=START)
        write_atomic(sweep_folder(outputs, "s") / "report" / "table.md", "| a |\n")
    assert up_to_date(outputs, [run_id], "s")
    assert list((outputs / "mlartifacts").rglob("table.md"))
    log = sweep_folder(outputs, "s") / "tracking.log"
    log.unlink()
    with mirroring(outputs, [run_id], "s"):
        pass
    assert not log.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("forked_mirrors")
def test_several_mirrors_at_once_make_one_store(new_outputs):
    """Without care, processes that create the tables of one new SQLite file at the same time crash."""
    outputs = new_outputs
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(4)]
    mirrors = [start_mirror(outputs, runs, "s") for _ in range(2)]
    assert all(mirror.stop() for mirror in mirrors)
    assert mirrors[0].log.read_text() == ""
    assert set(runs_of(outputs)) == set(runs)
    assert len(runs_of(outputs, "densevit.sweep")) == 1
    for run_id in runs:
        assert [p[0] for p in history(outputs, run_id, "train/loss")] == [1, 2, 3, 4, 5]


def test_no_run_is_a_mistake(outputs):
    with pytest.raises(SystemExit) as error:
        main([str(outputs)])
    assert error.value.code == 2


def test_many_points_have_no_hole_when_the_mirror_is_killed_amid_them(outputs):
    metrics = {f"health/{number}": float(number) for number in range(6)}
    run_id = make_run(outputs, [{**line, **metrics} for line in train_lines(1, 1000)])
    # At its usual low priority it would wait for the tests that run at the same time.
    program = "import os, sys, densevit.tracking.__main__ as t; os.nice = abs; t.main(sys.argv[1:])"
    command = [sys.executable, "-c", program, str(outputs), run_id]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(lambda: points(outputs / "mlflow.db")["metrics"] > 2000)
        process.kill()
    counted = points(outputs / "mlflow.db")
    assert 2000 < counted["metrics"] == counted["distinct"]
    for key in ("train/loss", *metrics):
        steps = [p[0] for p in history(outputs, run_id, key)]
        assert steps == list(range(1, len(steps) + 1))
    assert mirror_once(outputs, [run_id]) == NOTHING
    counted = points(outputs / "mlflow.db")
    assert counted["metrics"] == counted["distinct"] == 1000 * 8
    assert up_to_date(outputs, [run_id])
