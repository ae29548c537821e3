"""What a resumed run has cut from its metrics file and written anew, and what a mirror's death leaves."""

import fcntl
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from mlflow.exceptions import MlflowException
from rundirs import (
    START,
    client_of,
    history,
    make_plan,
    make_run,
    runs_of,
    train_lines,
    wait_for,
    write_lines,
)
from servers import points

from densevit.rundir import run_folder
from densevit.tracking import beside, bulk, store
from densevit.tracking.beside import mirror_once, mirroring, set_right, start_mirror, up_to_date
from densevit.tracking.mirror import Look, Mirroring

NOTHING: tuple = ([], [])


def looking(outputs, *run_ids, sweep=None):
    return Mirroring(outputs, store.store_uri(outputs), run_ids, sweep)


def gauged(lines, *steps):
    """Lines of which some have a number of the machine's, whenever that was looked at."""
    return [line | ({"system/cpu": 1.0} if line["step"] in steps else {}) for line in lines]


def steps(outputs, run_id, key):
    return [point[0] for point in history(outputs, run_id, key)]


@pytest.fixture
def asked(monkeypatch):
    """The metrics whose history is asked for."""
    import mlflow

    found, ask = [], mlflow.MlflowClient.get_metric_history

    def get(client, run_id, key):
        found.append(key)
        return ask(client, run_id, key)

    monkeypatch.setattr("mlflow.MlflowClient.get_metric_history", get)
    return found


@pytest.mark.parametrize("alive", [False, True], ids=["new mirror", "same mirror"])
def test_other_steps_than_before_are_sent_once_the_run_is_as_far_again(outputs, alive, asked):
    run_id = make_run(outputs, gauged(train_lines(1, 60), 20, 50), state="running")
    folder = run_folder(outputs, run_id)
    mirror = looking(outputs, run_id)
    with folder.lock():
        assert mirror.look(last=False) == Look()
        if not alive:
            mirror = looking(outputs, run_id)
        write_lines(folder, gauged(train_lines(1, 40) + train_lines(41, 55, 9.5), 20, 45))
        for _ in range(3):
            assert mirror.look(last=False) == Look()
        assert asked == []
        write_lines(folder, gauged(train_lines(56, 70, 9.5), 66), "a")
        assert mirror.look(last=False) == Look()
        assert sorted(asked) == ["system/cpu", "train/loss", "train/top1"]
        write_lines(folder, gauged(train_lines(71, 75, 9.5), 72), "a")
        assert mirror.look(last=False) == Look()
        assert len(asked) == 3
    assert steps(outputs, run_id, "system/cpu") == [20, 45, 50, 66, 72]
    assert steps(outputs, run_id, "train/loss") == list(range(1, 76))


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_run_that_ends_before_it_is_as_far_again_has_all_in_the_store(outputs, state):
    run_id = make_run(outputs, gauged(train_lines(1, 60), 20, 50), state="cancelled")
    folder = run_folder(outputs, run_id)
    assert mirror_once(outputs, [run_id]) == NOTHING
    write_lines(folder, gauged(train_lines(1, 40) + train_lines(41, 55, 9.5), 20, 45))
    folder.write_status(state, started=START)
    with folder.lock():  # as of a driver that leaves while the run goes on elsewhere
        assert mirror_once(outputs, [run_id]) == NOTHING
    assert steps(outputs, run_id, "system/cpu") == [20, 45, 50]
    assert up_to_date(outputs, [run_id]) == (state == "finished")


def test_two_mirrors_of_a_run_that_goes_on_ask_for_no_history(outputs, asked):
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    folder = run_folder(outputs, run_id)
    mirrors = [looking(outputs, run_id), looking(outputs, run_id)]
    with folder.lock():
        for last in range(6, 26):
            write_lines(folder, train_lines(last, last), "a")
            assert mirrors[last % 3 == 0].look(last=False) == Look()
    assert asked == []
    assert steps(outputs, run_id, "train/loss") == list(range(1, 26))


def test_what_is_known_is_lost_and_the_store_is_asked(outputs, asked):
    run_id = make_run(outputs, gauged(train_lines(1, 9), 4))
    assert mirror_once(outputs, [run_id]) == NOTHING
    run_folder(outputs, run_id).tracking_file.write_text("[1]\n")
    assert not up_to_date(outputs, [run_id])
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert sorted(asked) == ["system/cpu", "train/loss", "train/top1"]
    assert points(outputs / "mlflow.db")["metrics"] == 9 * 2 + 1
    assert up_to_date(outputs, [run_id])


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


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
    set_right(outputs, [run_id], "s")
    wait_for(lambda: up_to_date(outputs, [run_id], "s"))
    assert runs_of(outputs)[run_id].info.status == "FINISHED"
    assert len(history(outputs, run_id, "train/loss")) == 5


def test_a_sweep_whose_mirror_died_before_its_last_look_is_set_right(outputs):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])
    assert looking(outputs, run_id, sweep="s").look(last=False) == Look()
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
    set_right(outputs, [run_id], "s")
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


@pytest.fixture
def requests(monkeypatch):
    """How often each method of a client is called."""
    import mlflow

    counted = Counter()
    for name in ("get_run", "search_runs", "get_experiment_by_name", "log_batch", "update_run"):
        method = getattr(mlflow.MlflowClient, name)

        def call(*given, _name=name, _method=method, **named):
            counted[_name] += 1
            return _method(*given, **named)

        monkeypatch.setattr(mlflow.MlflowClient, name, call)
    return counted


def test_of_what_was_sent_to_its_end_nothing_is_asked_again(outputs, requests):
    """Of a sweep of thousands that would take longer than anybody waits for a last look."""
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(4)]
    make_plan(outputs, "s", runs)
    for _ in range(2):  # the second time it is known that each is the only one of its name
        assert mirror_once(outputs, runs, "s") == NOTHING
    requests.clear()
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert requests.total() <= 1  # the sweep's own run
    (outputs / "sweeps" / "s" / "report").mkdir()
    (outputs / "sweeps" / "s" / "report" / "table.md").write_text("| a |\n")
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert requests["log_batch"] == requests["search_runs"] == 0
    assert up_to_date(outputs, runs, "s")


@pytest.mark.parametrize("state", ["cancelled", "failed", "stopped"])
def test_a_driver_that_starts_a_run_again_has_its_mirror_meanwhile(outputs, state):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed, state=state) for seed in range(3)]
    make_plan(outputs, "s", runs)
    for _ in range(2):
        assert mirror_once(outputs, runs, "s") == NOTHING
    again = run_folder(outputs, runs[1])
    with mirroring(outputs, runs, "s", starting=True, every=0.1), again.lock():
        again.write_status("running", started=START)
        write_lines(again, train_lines(6, 9), "a")
        wait_for(lambda: runs_of(outputs)[runs[1]].info.status == "RUNNING")
        wait_for(lambda: len(history(outputs, runs[1], "train/loss")) == 9)
        wait_for(lambda: runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING")
        again.write_status("finished", started=START)
    assert runs_of(outputs)[runs[1]].info.status == "FINISHED"
    assert up_to_date(outputs, runs, "s")


def test_a_pause_between_two_runs_is_not_the_end_of_a_sweep(outputs):
    first = make_run(outputs, train_lines(1, 5))
    second = make_run(outputs, [], seed=1)
    shutil.rmtree(run_folder(outputs, second).path)
    make_plan(outputs, "s", [first, second])
    mirror = looking(outputs, first, second, sweep="s")
    assert mirror.look(last=False) == Look()
    assert mirror_once(outputs, [first], "s") == NOTHING  # by `status`, say
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "SCHEDULED"
    make_run(outputs, train_lines(1, 5), seed=1, state="running")
    with run_folder(outputs, second).lock():
        assert mirror.look(last=False) == Look()
        assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
    run_folder(outputs, second).write_status("finished", started=START)
    assert mirror.look(last=True) == Look()
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


def test_a_grid_that_has_grown_says_more_of_what_was_sent(outputs):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2)]
    make_plan(outputs, "s", runs)
    for _ in range(2):
        assert mirror_once(outputs, runs, "s") == NOTHING
    make_plan(outputs, "s", runs, **{run_id: {"axes": {"queue": 64}} for run_id in runs})
    assert not up_to_date(outputs, runs, "s")
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert [run.data.tags["queue"] for run in runs_of(outputs).values()] == ["64", "64"]
    assert up_to_date(outputs, runs, "s")


def test_what_was_sent_is_sent_again_where_it_is_not_any_more(outputs, empty_store):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2)]
    make_plan(outputs, "s", runs)
    for _ in range(2):
        assert mirror_once(outputs, runs, "s") == NOTHING
    shutil.copy(empty_store, outputs)
    assert start_mirror(outputs, runs, "s").stop()
    assert set(runs_of(outputs)) == set(runs)
    assert points(outputs / "mlflow.db")["metrics"] == 2 * 5 * 2


def test_a_sweep_that_stays_deleted_is_not_set_right_for_ever(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])
    assert looking(outputs, run_id, sweep="s").look(last=False) == Look()
    client = client_of(outputs)
    client.delete_run(runs_of(outputs, "densevit.sweep")["s"].info.run_id)
    monkeypatch.setattr(beside, "RIGHT_SECONDS", 0.0)
    started, start = [], beside.start_mirror
    monkeypatch.setattr(beside, "start_mirror", lambda *g: started.append(start(*g)) or started[-1])
    for _ in range(3):
        set_right(outputs, [run_id], "s")
        for mirror in started:
            mirror.process.wait(60)
    assert len(started) == 1


def test_a_file_without_lines_is_up_to_date(outputs):
    """Of a run that was started again without a checkpoint, and failed at once."""
    run_id = make_run(outputs, train_lines(1, 5), state="cancelled")
    assert mirror_once(outputs, [run_id]) == NOTHING
    run_folder(outputs, run_id).metrics_file.write_text("")
    run_folder(outputs, run_id).write_status("failed", started=START)
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert up_to_date(outputs, [run_id])


def test_nothing_is_left_to_mlflows_own_threads(outputs, monkeypatch):
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    calls, log = [], TrackingServiceClient.log_batch

    def log_batch(client, *given, synchronous=True, **named):
        calls.append(synchronous)
        return log(client, *given, synchronous=synchronous, **named)

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setattr(TrackingServiceClient, "log_batch", log_batch)
    assert mirror_once(outputs, [make_run(outputs, train_lines(1, 5))]) == NOTHING
    assert len(calls) > 1
    assert set(calls) == {True}


def test_the_helper_of_a_mirror_outlives_what_all_are_told():
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=bulk._follow_parent) as pool:
        pid = pool.submit(os.getpid).result(30)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(pid, number)
        assert pool.submit(os.getpid).result(30) == pid


def test_a_long_wait_for_a_lock_is_told(tmp_path, monkeypatch, capsys):
    told, tell = threading.Event(), store._tell_of_waiting
    monkeypatch.setattr(store, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(store, "_tell_of_waiting", lambda path: (tell(path), told.set()))
    lock = tmp_path / "mlflow.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Thread(target=lambda: told.wait(30) and fcntl.flock(held, fcntl.LOCK_UN)).start()
        with store.alone(lock) as mine:
            assert mine
    assert capsys.readouterr().err.startswith(f"warning: waiting for {lock}, which another process")


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [("databricks", False), ("databricks://me", False), ("databricks-uc://me", False),
     ("http://host", False), ("sqlite:////tmp/a.db", True), ("postgresql+psycopg2://h/d", True)],
)  # fmt: skip
def test_which_stores_each_process_opens_itself(uri, wanted):
    assert store.is_database(uri) == wanted
