"""Runs and sweeps that MLflow must not show as running, or outside their sweep, for ever."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from mlflow.exceptions import MlflowException
from rundirs import (
    START,
    artifacts_of,
    client_of,
    history,
    looking,
    make_plan,
    make_run,
    runs_of,
    send_all,
    train_lines,
    wait_for,
)

from densevit.cli.main import main
from densevit.runs.directory import run_folder
from densevit.tracking import mirror_process, store
from densevit.tracking.mirror import Messages
from densevit.tracking.mirror_process import fix_states, mirror_once, up_to_date

NOTHING: tuple = ([], [])


class Killed(BaseException):
    """Like SIGKILL: nothing is done after it."""


@pytest.mark.usefixtures("forked_mirrors")
def test_a_mirror_that_dies_when_it_has_made_a_run_leaves_it_to_status(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("densevit.tracking.mirror.send_points", die)
        patched.setattr("densevit.tracking.mirror.set_status", die)
        with pytest.raises(Killed):
            mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.status == "RUNNING"
    fix_states(outputs, [run_id], "s")
    wait_for(lambda: up_to_date(outputs, [run_id], "s"))
    assert runs_of(outputs)[run_id].info.status == "FINISHED"
    assert len(history(outputs, run_id, "train/loss")) == 5


@pytest.mark.usefixtures("forked_mirrors")
def test_a_sweep_whose_mirror_died_before_its_last_look_is_set_right(outputs):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])
    assert looking(outputs, run_id, sweep="s").update(last=False) == Messages()
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
    fix_states(outputs, [run_id], "s")
    wait_for(lambda: up_to_date(outputs, [run_id], "s"))
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


def test_what_the_store_refuses_of_a_run_leaves_it_not_running(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 5))

    def refuse(*_):
        raise MlflowException("a parameter is too long")

    monkeypatch.setattr(store, "describe", refuse)
    for _ in range(2):
        (problem,), _ = mirror_once(outputs, [run_id])
        assert "too long" in problem
    assert runs_of(outputs)[run_id].info.status == "FINISHED"


def test_a_place_for_artifacts_that_times_out_stops_no_other_run(outputs, monkeypatch):
    import mlflow

    slow, other = (make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2))
    log = mlflow.MlflowClient.log_artifact

    def time_out(client, run, path, place=None):
        if slow in path:
            raise MlflowException("Read timed out. (read timeout=20)")
        log(client, run, path, place)

    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", time_out)
    (problem,), _ = mirror_once(outputs, [slow, other], "s")
    assert problem == f"{slow}: does not answer: read timed out"
    assert len(history(outputs, other, "train/loss")) == 5
    assert {run.info.status for run in runs_of(outputs).values()} == {"FINISHED"}
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


def test_a_pause_between_two_runs_is_not_the_end_of_a_sweep(outputs):
    first = make_run(outputs, train_lines(1, 5))
    second = make_run(outputs, [], seed=1)
    shutil.rmtree(run_folder(outputs, second).path)
    make_plan(outputs, "s", [first, second])
    mirror = looking(outputs, first, second, sweep="s")
    assert mirror.update(last=False) == Messages()
    assert mirror_once(outputs, [first], "s") == NOTHING  # for example by `status`
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "SCHEDULED"
    make_run(outputs, train_lines(1, 5), seed=1, state="running")
    with run_folder(outputs, second).lock():
        assert mirror.update(last=False) == Messages()
        assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
    run_folder(outputs, second).write_status("finished", started=START)
    assert mirror.update(last=True) == Messages()
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


@pytest.mark.usefixtures("forked_mirrors")
def test_a_sweep_that_stays_deleted_is_not_set_right_for_ever(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])
    assert looking(outputs, run_id, sweep="s").update(last=False) == Messages()
    client = client_of(outputs)
    client.delete_run(runs_of(outputs, "densevit.sweep")["s"].info.run_id)
    monkeypatch.setattr(mirror_process, "FIX_SECONDS", 0.0)
    started, start = [], mirror_process.start_mirror
    monkeypatch.setattr(
        mirror_process, "start_mirror", lambda *g: started.append(start(*g)) or started[-1]
    )
    for _ in range(3):
        fix_states(outputs, [run_id], "s")
        for mirror in started:
            mirror.process.wait(120)
    assert len(started) == 1


def test_runs_are_shown_under_a_sweep_that_was_restored(outputs):
    """Also runs that were first sent while the sweep was deleted."""
    runs = [make_run(outputs, train_lines(1, 5))]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    parent = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    client_of(outputs).delete_run(parent)
    runs.append(make_run(outputs, train_lines(1, 5), seed=1))
    make_plan(outputs, "s", runs)
    for _ in range(2):
        assert mirror_once(outputs, runs, "s")[0] == []
    assert "mlflow.parentRunId" not in runs_of(outputs)[runs[1]].data.tags
    assert main(["sync", "s", "--outputs", str(outputs)]) == 0
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(outputs).values()} == {parent}
    assert up_to_date(outputs, runs, "s")


def test_a_sweeps_run_that_is_gone_for_good_is_made_again(outputs):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2)]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    gone = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    with closing(sqlite3.connect(outputs / "mlflow.db")) as database, database:
        for table in ("tags", "runs"):
            database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", (gone,))
    assert main(["sync", "--outputs", str(outputs)]) == 0
    parent = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(outputs).values()} == {parent}
    assert artifacts_of(outputs, parent) == {"plan.json"}


def test_a_folder_that_cannot_be_read_stops_no_other_run(outputs):
    good = make_run(outputs, train_lines(1, 5))
    (outputs / "runs" / "0123456789ab").write_text("no folder")
    assert mirror_once(outputs, ["0123456789ab", good]) == NOTHING
    assert len(history(outputs, good, "train/loss")) == 5
