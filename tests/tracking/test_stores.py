"""Which stores are accepted, the errors of those that are not, and how stores are written to."""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import forked
import psutil
import pytest
from rundirs import START, history, make_plan, make_run, train_lines, wait_for, write_lines

from densevit.runs.directory import run_folder
from densevit.tracking import mirror_process, store
from densevit.tracking.mirror_process import mirror_once, mirroring
from densevit.tracking.mlflow_run import steps_of
from densevit.tracking.store import active_runs, open_store
from densevit.tracking.store_uri import file_system, is_database, require_usable, store_uri
from densevit.utils.errors import UserError
from densevit.utils.redact import without_password

MOUNTS = r"""
proc /proc proc rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw,vers=4.2 0 0
mgs@tcp:/fs /scratch/big\040disk lustre rw 0 0
/dev/sdb1 /home/me/local xfs rw 0 0
/dev/sdc1 /mnt ext4 rw 0 0
me@there: /mnt fuse.sshfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x.db", "ext4"),
        ("/home/x/mlflow.db", "nfs4"),
        ("/home", "nfs4"),
        ("/homes/x", "ext4"),
        ("/home/me/local/mlflow.db", "xfs"),
        ("/scratch/big disk/mlflow.db", "lustre"),
        ("/mnt/x", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(tmp_path, monkeypatch, path, kind):
    mounts = tmp_path / "self" / "mounts"
    mounts.parent.mkdir()
    mounts.write_text(MOUNTS.lstrip())
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert file_system(Path(path)) == kind


def test_here_it_is_what_the_system_says(tmp_path):
    told = subprocess.run(
        ["df", "--output=fstype", tmp_path], capture_output=True, text=True, check=True
    )
    assert file_system(tmp_path / "new" / "mlflow.db") == told.stdout.split()[-1]


@pytest.mark.parametrize("kind", ["nfs", "lustre", "fuse.sshfs"])
def test_sqlite_on_a_network_file_system_is_refused_with_the_way_out(
    new_outputs, monkeypatch, capfd, kind
):
    run_id = make_run(new_outputs, train_lines(1, 2))
    monkeypatch.setattr("densevit.tracking.store_uri.file_system", lambda path: kind)
    with pytest.raises(UserError, match=rf"not safe on a network file system \({kind}\).*server"):
        require_usable(store_uri(new_outputs))
    with mirroring(new_outputs, [run_id]):
        assert not (new_outputs / "mlflow.db").exists()
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: MLflow store")
    assert not list(new_outputs.glob("mlflow*"))


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("htp://host:5000", "unknown kind 'htp'; did you mean 'http'?"),
        ("file:///tmp/mlruns", "no longer keeps runs in folders"),
        ("./mlruns", "no longer keeps runs in folders"),
        ("http://", "names no host"),
        ("http://me:secret@[::1:5000", "Invalid IPv6 URL"),
        ("http://me:sec/secret@host:5000", "its port is invalid; write / in a password as %2F"),
        ("http://me:123/secret@host:5000", "its port is invalid; write / in a password as %2F"),
        ("postgresql://me:two secret words@host/db", "is not SCHEME://USER:PASSWORD@HOST"),
        ("postgresql:/me:secret@host/db", "is not SCHEME://USER:PASSWORD@HOST"),
        ("http:/me:secret@host", "is not SCHEME://USER:PASSWORD@HOST"),
        ("postgresql:me:secret@host/db", "is not SCHEME://USER:PASSWORD@HOST"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
    ],
)
def test_what_is_no_store_is_one_line_and_no_obstacle(new_outputs, monkeypatch, capfd, uri, told):
    run_id = make_run(new_outputs, train_lines(1, 2))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    went_on = False
    with mirroring(new_outputs, [run_id]):
        went_on = True
    said = capfd.readouterr().err
    assert went_on
    assert told in said
    assert "secret" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000",
        "https://me:secret@host/path",
        "postgresql://me@host/db",
        "postgresql+psycopg2://host/db",
        "mysql+pymysql://host/db",
        "databricks",
        "databricks://profile",
        "sqlite:////tmp/x.db",
    ],
)
def test_what_is_a_store_is_taken(uri):
    require_usable(uri)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("sqlite:///stores/a.db", "sqlite:///{here}/stores/a.db"),
        ("sqlite:///./a.db", "sqlite:///{here}/a.db"),
        ("sqlite:///sqlite", "sqlite:///{here}/sqlite"),
        ("sqlite:///a//b.db?timeout=9", "sqlite:///{here}/a/b.db?timeout=9"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_a_relative_file_is_the_same_from_everywhere(tmp_path, monkeypatch, given, wanted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert store_uri(tmp_path / "other") == wanted.format(here=tmp_path)


@pytest.mark.parametrize("name", ["50% done", "what?"])
def test_folders_that_mlflow_misreads_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"MLflow misreads '[%?]' in a path; use an MLflow server"):
        require_usable(store_uri(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://me:secret@host:5000/a@b", "http://host:5000/a@b"),
        ("HTTPS://me:secret@host:5000", "HTTPS://host:5000"),
        ("POSTGRESQL://me:secret@host/db", "POSTGRESQL://host/db"),
        ("http://me:sec/secret@host", "http://host"),
        ("http://host:5000/#/a:b@c", "http://host:5000/#/a:b@c"),
        ("http://[::1]:5000/a@b", "http://[::1]:5000/a@b"),
        ("https://me:se@cret@host", "https://host"),
        ("postgresql://me:se/cr@et@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql+psycopg2://host/db?user=me&password=secret", "postgresql+psycopg2://host/db?user=me&password=***"),
        ("to http://a:secret@x failed, and mysql://b:secret@y/z", "to http://x failed, and mysql://y/z"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
        ("postgresql://me:two secret words@host/db", "postgresql://host/db"),
        ("postgresql:/me:secret@host/db", "postgresql:/host/db"),
        ("http:/me:secret@host", "http:/host"),
        ("http://me:a secret@host:5000/x", "http://host:5000/x"),
        ("https://host/api?user=me&token=secret#/x?key=y", "https://host/api?user=me&token=***#/x?key=***"),
        ("https://host?access_token=secret", "https://host?access_token=***"),
        ("read file:///a/b@c and http://host:5000/ for a@b", "read file:///a/b@c and http://host:5000/ for a@b"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(given, shown):
    assert without_password(given) == shown


def test_of_a_database_that_is_not_there_mlflow_is_not_asked(outputs, monkeypatch):
    """MLflow would try for minutes."""
    run_id = make_run(outputs, train_lines(1, 2))
    monkeypatch.setattr("mlflow.MlflowClient", lambda *_: pytest.fail("MLflow was asked"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:9/db")
    (problem,), _ = mirror_once(outputs, [run_id])
    assert problem == "MLflow at postgresql://127.0.0.1:9/db: does not answer: connection refused"


def test_what_is_wrong_with_the_mirror_stops_no_run(outputs, capfd):
    """The log belongs to somebody else and another run is damaged, while one run trains."""
    run_id = make_run(outputs, train_lines(1, 2))
    assert mirror_once(outputs, [run_id], "s") == ([], [])
    other = make_run(outputs, [], seed=1)
    make_plan(outputs, "s", [run_id, other])
    run_folder(outputs, other).status_file.write_text("{half")
    (outputs / "sweeps" / "s" / "tracking.log").mkdir()
    went_on = False
    with mirroring(outputs, [run_id], "s"):
        went_on = True
    assert went_on
    assert "the runs continue without MLflow" in capfd.readouterr().err


@pytest.mark.usefixtures("forked_mirrors")
def test_a_mirror_that_was_killed_has_a_successor_at_the_end(outputs, monkeypatch, capfd):
    run_id = make_run(outputs, train_lines(1, 2), state="running")
    folder = run_folder(outputs, run_id)
    started = []
    start = mirror_process.start_mirror
    monkeypatch.setattr(
        mirror_process, "start_mirror", lambda *g: started.append(start(*g)) or started[-1]
    )
    with folder.lock(), mirroring(outputs, [run_id]):
        wait_for(folder.tracking_file.exists)
        started[0].process.kill()
        started[0].process.wait()
        write_lines(folder, train_lines(3, 5), "a")
        folder.write_status("finished", started=START)
    assert len(started) == 2
    assert len(history(outputs, run_id, "train/loss")) == 5
    assert capfd.readouterr().err == ""


def test_a_store_of_another_schema_is_told_and_the_runs_are_kept(outputs):
    run_id = make_run(outputs, train_lines(1, 2))
    with closing(sqlite3.connect(outputs / "mlflow.db")) as store, store:
        ((held,),) = store.execute("SELECT version_num FROM alembic_version").fetchall()
        store.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    (problem,), _ = mirror_once(outputs, [run_id])
    assert problem.startswith(f"MLflow at sqlite:///{outputs}/mlflow.db: MlflowException: ")
    assert "schema" in problem
    assert "\n" not in problem
    with closing(sqlite3.connect(outputs / "mlflow.db")) as store, store:
        store.execute(f"UPDATE alembic_version SET version_num = '{held}'")
    assert mirror_once(outputs, [run_id]) == ([], [])
    assert len(history(outputs, run_id, "train/loss")) == 2


@pytest.mark.parametrize("content", [b"no database at all", b""], ids=["text", "empty"])
def test_a_file_that_is_no_store(outputs, content):
    run_id = make_run(outputs, train_lines(1, 2))
    (outputs / "mlflow.db").write_bytes(content)
    problems, _ = mirror_once(outputs, [run_id])
    if content:
        assert len(problems) == 1
        assert "not a database" in problems[0]
        assert (outputs / "mlflow.db").read_bytes() == content
    else:  # SQLite takes it for a new one
        assert problems == []
        assert len(history(outputs, run_id, "train/loss")) == 2


def finds_another_file(arguments):
    """Run a mirror that finds another file in place of its store at the second update."""
    from densevit.tracking import __main__ as tracking

    outputs, run, other = Path(arguments[0]), arguments[1], arguments[2]
    mirror = tracking.Mirror(outputs, tracking.store_uri(outputs), [run])
    mirror.update(False)
    place = tracking._restart_if_replaced(mirror.uri, None)
    (outputs / "mlflow.db").unlink()
    shutil.copy(other, outputs / "mlflow.db")
    sys.argv = [sys.argv[0], str(outputs), run]
    os.set_inheritable(0, True)  # the new program reads its end there
    tracking._restart_if_replaced(mirror.uri, place)


def test_a_mirror_notices_that_its_file_is_another_one(outputs, empty_store):
    """SQLite continues to write to a deleted file, where nobody would find the data."""
    run_id = make_run(outputs, train_lines(1, 5))
    done = forked.done([outputs, run_id, empty_store], finds_another_file)
    assert done.returncode == 0, done.stderr
    assert len(history(outputs, run_id, "train/loss")) == 5


def test_active_runs_are_those_that_are_there_and_not_deleted(outputs):
    runs = [make_run(outputs, train_lines(1, 2), seed=seed) for seed in range(3)]
    mirror_once(outputs, runs)
    client = open_store(store_uri(outputs))
    experiment = client.get_experiment_by_name("tests").experiment_id
    ids = {run.info.run_id for run in client.search_runs([experiment])}
    found = active_runs(client, [experiment, "12345"], ids)
    assert set(found) == ids
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert [steps_of(run) for run in found.values()] == [{"train/loss": 2, "train/top1": 2}] * 3
    gone = ids.pop()
    client.delete_run(gone)
    assert set(active_runs(client, [experiment], [*ids, gone, "0" * 32])) == ids
    assert active_runs(client, [experiment], []) == {}


def test_all_pages_of_a_search(outputs, monkeypatch):
    monkeypatch.setattr(store, "PAGE", 2)
    runs = [make_run(outputs, train_lines(1, 2), seed=seed) for seed in range(5)]
    mirror_once(outputs, runs)
    client = open_store(store_uri(outputs))
    experiment = client.get_experiment_by_name("tests").experiment_id
    found = [run.info.run_id for run in store.all_pages(client.search_runs, [experiment])]
    assert len(found) == len(set(found)) == 5
    assert set(active_runs(client, [experiment], found)) == set(found)


def test_nothing_is_left_to_mlflows_own_threads(outputs, monkeypatch):
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    calls, log = [], TrackingServiceClient.log_batch

    def log_batch(client, *given, synchronous=True, **named):
        calls.append(synchronous)
        return log(client, *given, synchronous=synchronous, **named)

    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    monkeypatch.setattr(TrackingServiceClient, "log_batch", log_batch)
    assert mirror_once(outputs, [make_run(outputs, train_lines(1, 5))]) == ([], [])
    assert len(calls) > 1
    assert set(calls) == {True}


def test_a_long_wait_for_a_lock_is_told(tmp_path, monkeypatch, capsys):
    told, tell = threading.Event(), store._warn_of_waiting
    monkeypatch.setattr(store, "WARN_SECONDS", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(store, "_warn_of_waiting", lambda path: (tell(path), told.set()))
    lock = tmp_path / "mlflow.lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Thread(target=lambda: told.wait(30) and fcntl.flock(held, fcntl.LOCK_UN)).start()
        with store.file_lock(lock) as mine:
            assert mine
    assert capsys.readouterr().err.startswith(f"warning: waiting for {lock}, which another process")


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [("databricks", False), ("databricks://me", False), ("databricks-uc://me", False),
     ("http://host", False), ("sqlite:////tmp/a.db", True), ("postgresql+psycopg2://h/d", True)],
)  # fmt: skip
def test_which_stores_each_process_opens_itself(uri, wanted):
    assert is_database(uri) == wanted
