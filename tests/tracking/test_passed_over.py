"""Runs that were sent completely and are skipped, and when they are not skipped."""

import shutil
from collections import Counter

import pytest
from rundirs import (
    START,
    history,
    make_plan,
    make_run,
    runs_of,
    send_all,
    train_lines,
    wait_for,
    write_lines,
)
from servers import points

from densevit.cli.main import main
from densevit.runs.directory import run_folder
from densevit.tracking.mirror_process import mirror_once, mirroring, start_mirror, up_to_date
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

NOTHING: tuple = ([], [])


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of each method of a client."""
    import mlflow

    counted = Counter()
    for name in ("get_run", "search_runs", "get_experiment_by_name", "log_batch", "update_run"):
        method = getattr(mlflow.MlflowClient, name)

        def call(*given, _name=name, _method=method, **named):
            counted[_name] += 1
            return _method(*given, **named)

        monkeypatch.setattr(mlflow.MlflowClient, name, call)
    return counted


def test_of_what_was_sent_to_its_end_nothing_is_asked_again(outputs, calls):
    """In a sweep of thousands of runs, a last update would take too long."""
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(4)]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    calls.clear()
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert calls == {"search_runs": 1}
    (outputs / "sweeps" / "s" / "report").mkdir()
    (outputs / "sweeps" / "s" / "report" / "table.md").write_text("| a |\n")
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert calls == {"search_runs": 2}
    assert up_to_date(outputs, runs, "s")


@pytest.mark.usefixtures("forked_mirrors")
@pytest.mark.parametrize("state", ["cancelled", "failed", "stopped"])
def test_a_driver_that_starts_a_run_again_has_its_mirror_meanwhile(outputs, state):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed, state=state) for seed in range(3)]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    again = run_folder(outputs, runs[1])
    with mirroring(outputs, runs, "s", starting=True, every=0.1, grace=120), again.lock():
        again.write_status("running", started=START)
        write_lines(again, train_lines(6, 9), "a")
        wait_for(lambda: runs_of(outputs)[runs[1]].info.status == "RUNNING")
        wait_for(lambda: len(history(outputs, runs[1], "train/loss")) == 9)
        wait_for(lambda: runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING")
        again.write_status("finished", started=START)
    assert runs_of(outputs)[runs[1]].info.status == "FINISHED"
    assert up_to_date(outputs, runs, "s")


def test_a_grid_that_has_grown_says_more_of_what_was_sent(outputs):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2)]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    make_plan(outputs, "s", runs, **{run_id: {"axes": {"queue_size": 64}} for run_id in runs})
    assert not up_to_date(outputs, runs, "s")
    assert mirror_once(outputs, runs, "s") == NOTHING
    assert [run.data.tags["queue_size"] for run in runs_of(outputs).values()] == ["64", "64"]
    assert up_to_date(outputs, runs, "s")


@pytest.mark.usefixtures("forked_mirrors")
def test_what_was_sent_is_sent_again_where_it_is_not_any_more(outputs, empty_store):
    runs = [make_run(outputs, train_lines(1, 5), seed=seed) for seed in range(2)]
    make_plan(outputs, "s", runs)
    send_all(outputs, runs, "s")
    shutil.copy(empty_store, outputs)
    assert start_mirror(outputs, runs, "s").stop(120)
    assert set(runs_of(outputs)) == set(runs)
    assert points(outputs / "mlflow.db")["metrics"] == 2 * 5 * 2


@pytest.mark.parametrize(
    "damage",
    [{"experiment_id": ["1"]}, {"last_steps": [1]}, {"last_steps": {"train/loss": "5"}},
     {"renamed": None}, {"odd": [["a"]]}, {"offset": "7"}, {"mark": 3}, {"sweeps": ["s"]},
     {"files": 0}, {"status": None}, {"mlflow_run_id": 5}, {"model": {}}],
    ids=str,
)  # fmt: skip
def test_damage_to_what_is_remembered_is_mended(outputs, damage):
    run_id = make_run(outputs, train_lines(1, 5))
    make_plan(outputs, "s", [run_id])
    send_all(outputs, [run_id], "s")
    for file in (run_folder(outputs, run_id).tracking_file, outputs / "sweeps/s/tracking.json"):
        write_json(file, {**read_json(file), **damage})
    for _ in range(2):
        assert main(["sync", "--outputs", str(outputs)]) == 0
    assert up_to_date(outputs, [run_id], "s")
    assert len(history(outputs, run_id, "train/loss")) == 5
    assert set(runs_of(outputs, "densevit.sweep")) == {"s"}


def test_a_network_is_wished_of_finished_runs_alone(outputs):
    run_id = make_run(outputs, train_lines(1, 5), state="stopped", log_model=True)
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert up_to_date(outputs, [run_id])


def test_a_network_that_was_refused_is_tried_again_by_name(outputs, monkeypatch, capsys):
    run_id = make_run(outputs, train_lines(1, 5), log_model=True)
    tried = []

    def refuse(*given):
        tried.append(given)
        raise UserError("torch cannot export it")

    monkeypatch.setattr("densevit.tracking.mlflow_model.log_model", refuse)
    for names, count in ((), 1), ((), 1), ((run_id,), 2):
        assert main(["sync", *names, "--outputs", str(outputs)]) == 0
        assert len(tried) == count
    assert "torch cannot export it; densevit sync NAME tries it again" in capsys.readouterr().err
