"""The mirror with a real MLflow server on PostgreSQL, and faults of both.

Stored points are counted in the database itself.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import servers
import stored
from rundirs import (
    START,
    artifacts_of,
    make_plan,
    make_run,
    train_lines,
    wait_for,
    write_lines,
)

from densevit.cli.main import main
from densevit.runs.directory import run_folder
from densevit.tracking.mirror import Mirror
from densevit.tracking.mirror_process import mirror_once, start_mirror, up_to_date
from densevit.tracking.store import active_runs, open_store

pytestmark = pytest.mark.tracking
NOTHING: tuple = ([], [])
SEEDS = itertools.count()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    servers.need(servers.postgres_missing())
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as uri:
        yield uri


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    with servers.mlflow_server(database, tmp_path_factory.mktemp("server") / "artifacts") as found:
        yield found


@pytest.fixture
def proxy(server, monkeypatch):
    """Return a proxy before the server; it is the store of this test."""
    with servers.proxy(server.uri) as found:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        yield found


@pytest.fixture
def arrived(database):
    """Return a function: (rows, different (run, metric, step)) of runs in the database."""

    def count(*run_ids):
        named = ", ".join(f"'{run_id}'" for run_id in run_ids)
        of = (
            "FROM metrics m JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = 'densevit.run' "
            f"WHERE t.value IN ({named})"
        )
        ((rows,),) = servers.query(database, f"SELECT count(*) {of}")
        ((different,),) = servers.query(
            database, f"SELECT count(*) FROM (SELECT DISTINCT t.value, m.key, m.step {of}) AS d"
        )
        return rows, different

    return count


@pytest.fixture
def fresh(new_outputs):
    """Return outputs whose runs no other test has, because the store is shared."""

    def make(count, lines, **changes):
        return [make_run(new_outputs, lines, seed=next(SEEDS), **changes) for _ in range(count)]

    new_outputs.mkdir()
    return make


def until_sent(outputs, run_ids, sweep=None, tries=400):
    """Look as the mirror does, until nothing is missing; returns how many looks failed."""
    mirror = Mirror(outputs, os.environ["MLFLOW_TRACKING_URI"], run_ids, sweep)
    for failed in range(tries):
        if mirror.update(last=True).problems == []:
            return failed
    raise AssertionError("it never got through")


def status_of(database, run_id):
    wanted = (
        "SELECT r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid "
        f"WHERE t.key = 'densevit.run' AND t.value = '{run_id}' AND r.lifecycle_stage = 'active'"
    )
    return [status for (status,) in servers.query(database, wanted)]


# Sixteen processes that each import MLflow would do little else. These have imported it and have
# opened no store, so they reach the store within moments of each other.
SIXTEEN = """
import os, sys
import mlflow, mlflow.store.tracking.sqlalchemy_store, mlflow.store.tracking.rest_store
from densevit.tracking.__main__ import main
outputs, *runs = sys.argv[1:]
pids = []
for run in runs:
    pid = os.fork()
    if pid == 0:
        os._exit(main([outputs, "--sweep", "s", run]))
    pids.append(pid)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])
"""


@pytest.mark.parametrize("kind", ["server", "postgresql", "sqlite"])
def test_sixteen_at_once_from_nothing(new_outputs, kind, monkeypatch, request, tmp_path):
    if kind == "sqlite":
        store = f"sqlite:///{tmp_path / 'new.db'}"
    else:
        store = stored.new_database(request.getfixturevalue("database"), f"sixteen_{kind}")
    runs = [make_run(new_outputs, train_lines(1, 100), seed=seed) for seed in range(16)]
    make_plan(new_outputs, "s", runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")  # as in a mirror before its import
    at_server = kind == "server"
    context = servers.mlflow_server(store, tmp_path / "art") if at_server else nullcontext()
    with context as found:
        if found is not None:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
        done = subprocess.run(
            [sys.executable, "-c", SIXTEEN, str(new_outputs), *runs], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=600, check=True,
        )  # fmt: skip
    assert done.stdout == f"{[0] * 16}\n"
    assert done.stderr == ""
    counted = servers.points(store)
    assert counted["metrics"] == counted["distinct"] == 16 * 100 * 2
    active = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"
    assert servers.query(store, active) == [(17,)]
    assert servers.query(store, "SELECT DISTINCT status FROM runs") == [("FINISHED",)]


def test_absent_at_the_start_and_there_later(new_outputs, fresh, proxy, arrived, database):
    (run_id,) = fresh(1, train_lines(1, 5), state="running")
    folder = run_folder(new_outputs, run_id)
    proxy.refuse = True
    with folder.lock():
        mirror = start_mirror(new_outputs, [run_id], "absent", 0.2)
        wait_for(lambda: "connection refused" in mirror.log.read_text())
        write_lines(folder, train_lines(6, 50), "a")
        proxy.refuse = False
        wait_for(lambda: arrived(run_id) == (100, 100))
        assert status_of(database, run_id) == ["RUNNING"]
        folder.write_status("finished", started=START)
    assert mirror.stop()
    assert status_of(database, run_id) == ["FINISHED"]
    assert mirror.log.read_text().count("\n") == 1


def test_killed_in_the_middle_and_back(new_outputs, fresh, server, monkeypatch, arrived):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    (run_id,) = fresh(1, train_lines(1, 5), state="running")
    folder = run_folder(new_outputs, run_id)
    with folder.lock():
        mirror = start_mirror(new_outputs, [run_id], "killed", 0.2)
        wait_for(folder.tracking_file.exists)
        server.kill()
        write_lines(folder, train_lines(6, 50), "a")
        wait_for(lambda: "does not answer" in mirror.log.read_text())
        server.start()
        # Meanwhile the mirror has increased its waiting time.
        wait_for(lambda: arrived(run_id) == (100, 100))
    assert mirror.stop()


def test_answers_that_are_lost_though_the_work_was_done(
    new_outputs, fresh, proxy, arrived, database
):
    runs = fresh(2, train_lines(1, 2500))
    proxy.drop, proxy.drop_before = 0.25, 0.15
    failed = until_sent(new_outputs, runs, "lost")
    assert failed > 0
    assert arrived(*runs) == (10_000, 10_000)
    proxy.drop = proxy.drop_before = 0.0
    assert mirror_once(new_outputs, runs, "lost") == NOTHING
    assert len(stored.of_sweep(database, "lost")) == 3


def test_a_slow_server_is_waited_for_and_not_asked_twice(new_outputs, fresh, proxy, arrived):
    runs = fresh(1, train_lines(1, 600))
    make_plan(new_outputs, "slow", runs)
    proxy.delay = 0.15
    for _ in range(2):  # then it is known to be the only one
        assert mirror_once(new_outputs, runs, "slow") == NOTHING
    assert arrived(*runs) == (1200, 1200)
    asked = proxy.requests
    assert main(["sync", "slow", "--outputs", str(new_outputs)]) == 0
    assert proxy.requests - asked == 1


def test_a_server_that_hangs_costs_two_time_outs_a_look(
    new_outputs, fresh, proxy, arrived, monkeypatch
):
    runs = fresh(3, train_lines(1, 5))
    for count in (5, 10):  # runs that the store does not know, and runs that it does
        proxy.delay = 60.0
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "6")
        asked = proxy.requests
        (problem,), _ = mirror_once(new_outputs, runs, "hangs")
        assert proxy.requests - asked == 2
        assert "does not answer: read timed out" in problem
        proxy.delay = 0.0
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
        assert mirror_once(new_outputs, runs, "hangs") == NOTHING
        assert arrived(*runs) == (3 * 2 * count, 3 * 2 * count)
        for run_id in runs:
            write_lines(run_folder(new_outputs, run_id), train_lines(6, 10), "a")


@pytest.mark.parametrize("status", [500, 502, 503, 429, 401])
def test_full_of_errors(new_outputs, fresh, proxy, arrived, status):
    runs = fresh(2, train_lines(1, 300))
    proxy.status = status
    (problem,), notes = mirror_once(new_outputs, runs, "errors")
    assert notes == []
    assert str(status) in problem
    assert "\n" not in problem
    proxy.status_share = 0.3
    until_sent(new_outputs, runs, "errors")
    assert arrived(*runs) == (1200, 1200)


def test_killed_between_sending_and_remembering(new_outputs, fresh, proxy, arrived):
    (run_id,) = fresh(1, train_lines(1, 1200), state="running")
    folder = run_folder(new_outputs, run_id)
    proxy.only, proxy.delay = "log-batch", 60.0
    with folder.lock():
        mirror = start_mirror(new_outputs, [run_id], "between")
        # Both requests have arrived, and their responses are on the way.
        wait_for(lambda: arrived(run_id)[0] >= 2000)
        os.killpg(mirror.process.pid, signal.SIGKILL)
        mirror.stop()
        proxy.delay = 0.0
        # Meanwhile the run was resumed, and has written some steps again at other times.
        write_lines(folder, train_lines(1, 400) + train_lines(401, 1500, offset=77.0))
        assert mirror_once(new_outputs, [run_id], "between") == NOTHING
    assert arrived(run_id) == (3000, 3000)


def test_a_store_that_was_emptied_is_filled_to_the_same(new_outputs, fresh, proxy, database):
    odd = {"step": 7, "epoch": 1, "time": START + 7, "train/loss": "NaN", "train/top1": "-Infinity"}
    runs = fresh(2, [*train_lines(1, 6), odd], model_kwargs={"long": "x" * 9000})
    make_plan(new_outputs, "emptied", runs, description="What for?")
    folder = run_folder(new_outputs, runs[0])
    folder.predictions_file("val").parent.mkdir()
    folder.predictions_file("val").write_bytes(b"answers")
    assert main(["sync", "emptied", "--outputs", str(new_outputs)]) == 0
    before = stored.dump(database, "emptied")
    assert len(before) == 3
    assert len(before[runs[0]]["metrics"]) == 14
    assert up_to_date(new_outputs, runs, "emptied")
    stored.forget(database, "emptied")
    assert stored.dump(database, "emptied") == {}
    assert main(["sync", "--outputs", str(new_outputs)]) == 0
    assert stored.dump(database, "emptied") == before
    (mlflow_id,) = [
        i for i, name in stored.of_sweep(database, "emptied").items() if name == runs[0]
    ]
    assert "predictions/val.parquet" in artifacts_of(new_outputs, mlflow_id)


def test_a_server_that_asks_for_a_password(new_outputs, fresh, tmp_path, monkeypatch, capsys):
    runs = fresh(1, train_lines(1, 5))
    make_plan(new_outputs, "s", runs)
    store = f"sqlite:///{tmp_path / 'auth.db'}"
    with servers.mlflow_server(store, tmp_path / "art", auth=("lab", "a long secret")) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        assert main(["sync", "--outputs", str(new_outputs)]) == 2
        assert "401" in capsys.readouterr().err
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "lab")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long secret")
        assert main(["sync", "--outputs", str(new_outputs)]) == 0
        record = json.loads(run_folder(new_outputs, runs[0]).tracking_file.read_text())
        ids = [record["experiment_id"]], [record["mlflow_run_id"]]
        assert set(active_runs(open_store(server.uri), *ids)) == set(ids[1])
        capsys.readouterr()
        assert main(["sync", "--outputs", str(new_outputs)]) == 0
        assert "up to date" in capsys.readouterr().out
        assert "secret" not in run_folder(new_outputs, runs[0]).tracking_file.read_text()
    assert servers.points(store)["metrics"] == 10
