"""The bench of the mirror measures what it states; the times themselves are not tested."""

import json
import multiprocessing
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import forked
import pytest
from forkedmirror import STAND_IN, ForkedMirror

from densevit.utils.errors import RunError

FOLDER = Path(__file__).parents[1] / "bench"


def bench(*words, work=forked.script):
    return forked.done([FOLDER / "tracking.py", *words], work)


def lighter(arguments):
    """Run the bench with a forked mirror and copied tables, which MLflow would take seconds to
    create."""
    from mlflow.store.db import utils

    from densevit.tracking import mirror_process

    def copied(engine):
        held, new = os.environ["EMPTY_STORE"], engine.url.database
        with closing(sqlite3.connect(held)) as source, closing(sqlite3.connect(new)) as target:
            source.backup(target)

    utils._initialize_tables = copied
    ForkedMirror.context = multiprocessing.get_context("fork")
    mirror_process.subprocess = STAND_IN
    forked.script(arguments)


def test_what_is_measured(tmp_path, empty_store, monkeypatch):
    monkeypatch.setenv("EMPTY_STORE", str(empty_store))
    # Read-only, whoever calls.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    file = tmp_path / "bench.json"
    small = ["--step-ms", "5", "--every", "0.1", "--turns", "3", "--steps", "19", "--runs", "2"]
    done = bench(*small, "--rounds", "1", "--no-server", "--json", file, work=lighter)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert set(found) == {"command", "machine", "rows"}
    rows = {row["name"]: row for row in found["rows"]}
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) == 1 + len(rows)
    assert {name: row["goal"] for name, row in rows.items() if row["goal"]} == {
        "a logged line of 25 numbers": 50,
        "of a step of 100 ms": 0.1,
        "a sample, of the 5 s between two": 0.04,
        "median step beside a mirror / without": 1.001,
        "turn by turn": 1.001,
        "380 values into SQLite": 10,  # the bench counts them in the database
        "sync of 2 runs, up to date, SQLite": 1,
    }
    turns = ["turn by turn", "noise turn by turn", "a step without"]
    assert all(len(row["values"]) == (3 if name in turns else 1) for name, row in rows.items())
    assert all(value >= 0 for row in rows.values() for value in row["values"])
    assert all(value > 1 for value in rows["a step without"]["values"])
    assert not (tmp_path / "mine.db").exists()


def test_a_value_that_is_missing_or_there_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    from tracking import _require

    database = tmp_path / "store.db"
    with closing(sqlite3.connect(database)) as store:
        store.execute("CREATE TABLE metrics (run_uuid, key, step, is_nan)")
        for table in ("runs", "params", "tags"):
            store.execute(f"CREATE TABLE {table} (run_uuid)")
        store.executemany("INSERT INTO metrics VALUES ('a', 'm', ?, 0)", [(1,), (2,)])
        store.commit()
        _require(f"sqlite:///{database}", 2)
        with pytest.raises(RunError, match="3 values were sent"):
            _require(f"sqlite:///{database}", 3)
        store.execute("INSERT INTO metrics VALUES ('a', 'm', 2, 0)")
        store.commit()
        with pytest.raises(RunError, match="'metrics': 3, 'distinct': 2"):
            _require(f"sqlite:///{database}", 3)


def test_a_mistake_is_told():
    done = bench("--only", "hott")
    assert done.returncode == 2
    assert "--only: unknown name 'hott'; did you mean 'hot'?" in done.stderr
    assert done.stdout == ""
