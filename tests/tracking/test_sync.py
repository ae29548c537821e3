"""`densevit sync` as a user types it."""

import subprocess
import sys

import forked
import pytest
from mlflow.exceptions import MlflowException
from rundirs import (
    CONFIG,
    client_of,
    history,
    make_plan,
    make_run,
    runs_of,
    train_lines,
    wait_for,
    write_lines,
)

from densevit.cli.main import main, main_sweep
from densevit.config import yaml_file
from densevit.runs.directory import run_folder
from densevit.tracking import mirror_process
from densevit.tracking.mirror_process import fix_states, mirror_once, start_mirror
from densevit.utils.files import write_atomic


@pytest.fixture
def filled(outputs):
    """Return outputs with two sweeps that share a run, and a run of no sweep; with the ids."""
    a, b, c, alone = (make_run(outputs, train_lines(1, 4), seed=seed) for seed in range(4))
    make_plan(outputs, "one", [a, b])
    make_plan(outputs, "two", [b, c, "0123456789ab"])
    return outputs, (a, b, c, alone)


def sync(outputs, *names):
    return main(["sync", *names, "--outputs", str(outputs)])


def test_all_there_is_and_then_nothing(filled, capsys):
    outputs, ids = filled
    for name in ("one", "two"):  # of the run that both have
        picture = outputs / "sweeps" / name / "report" / f"matches-{ids[1]}.png"
        write_atomic(picture, name)
    assert sync(outputs) == 0
    told = ["one: sending 2 runs", "two: sending 2 runs", "runs of no sweep: sending 1 run"]
    assert capsys.readouterr().out.splitlines() == told
    runs = runs_of(outputs)
    assert set(runs) == set(ids)
    assert runs[ids[1]].data.tags["densevit.sweeps"] == "one,two"
    assert set(runs_of(outputs, "densevit.sweep")) == {"one", "two"}
    for run_id in ids:
        assert len(history(outputs, run_id, "train/loss")) == 4
    assert sync(outputs) == 0
    out, err = capsys.readouterr()
    runs = {"one": "2 runs", "two": "2 runs", "runs of no sweep": "1 run"}
    assert out.splitlines() == [f"{name}: up to date ({some})" for name, some in runs.items()]
    assert err == ""


def test_what_is_up_to_date_needs_no_torch(filled):
    outputs, _ = filled
    assert sync(outputs) == 0
    code = (
        "import sys; from densevit.cli.main import main;"
        "assert main(['sync', '--outputs', sys.argv[1]]) == 0;"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(outputs)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("up to date") == 3


@pytest.mark.parametrize("which", ["sweep", "run", "file"])
def test_named_ones_alone(filled, tmp_path, which, capsys):
    outputs, (_, b, c, _) = filled
    file = tmp_path / "two.yaml"
    file.write_text("name: two\ngrid: {cl_mode: [none, dense]}\n")
    name, wanted = {
        "sweep": ("two", {b, c}), "run": (c, {c}), "file": (str(file), {b, c}),
    }[which]  # fmt: skip
    assert sync(outputs, name) == 0
    assert set(runs_of(outputs)) == wanted
    assert set(runs_of(outputs, "densevit.sweep")) == {"two"}


def test_what_was_deleted_comes_back_only_when_it_is_named(filled, capsys):
    outputs, (a, b, _, _) = filled
    assert sync(outputs) == 0
    client_of(outputs).delete_run(runs_of(outputs)[a].info.run_id)
    capsys.readouterr()
    assert sync(outputs) == 0
    assert f"warning: {a}: was deleted in MLflow; densevit sync {a} restores" in (
        capsys.readouterr().err
    )
    assert a not in runs_of(outputs)
    assert sync(outputs, "one") == 0
    assert set(runs_of(outputs)) >= {a, b}
    assert len(history(outputs, a, "train/loss")) == 4


def test_a_wrong_name_is_one_line(filled, capsys):
    outputs, _ = filled
    assert sync(outputs, "onne") == 2
    err = capsys.readouterr().err
    assert err.endswith("did you mean 'one'?\n")
    assert err.count("\n") == 1
    assert main(["sync", "--outputs", str(outputs / "none")]) == 2
    assert "has no runs" in capsys.readouterr().err


def test_a_store_that_does_not_answer(filled, capsys, monkeypatch):
    outputs, _ = filled
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that what the flag sets is undone
    assert main(["sync", "--outputs", str(outputs), "--tracking-uri", "http://127.0.0.1:9"]) == 75
    lines = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:9: does not answer: connection refused" in lines[0]
    assert "the same command sends the rest" in lines[-1]
    assert main(["sync", "--outputs", str(outputs), "--tracking-uri", "ftp://x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_run_is_told_and_makes_the_exit_code(filled, capsys):
    outputs, (a, *others) = filled
    run_folder(outputs, a).metrics_file.write_text("{half a line\n")
    assert sync(outputs) == 1
    assert f"warning: {a}: " in capsys.readouterr().err
    for run_id in others:
        assert len(history(outputs, run_id, "train/loss")) == 4


def test_a_run_that_died_without_a_word_is_set_right(outputs):
    """By `status`, which starts the correction and does not wait."""
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    folder = run_folder(outputs, run_id)
    with folder.lock():
        mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.status == "RUNNING"  # and its mirror has died with it
    fix_states(outputs, [run_id], "s")
    wait_for(lambda: runs_of(outputs)[run_id].info.status == "FAILED")
    wait_for(lambda: runs_of(outputs, "densevit.sweep")["s"].info.status == "FAILED")
    assert (outputs / "sweeps" / "s" / "tracking.log").read_text() == ""


@pytest.mark.usefixtures("forked_mirrors")
def test_while_a_mirror_is_at_work(outputs):
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    make_plan(outputs, "s", [run_id])
    folder = run_folder(outputs, run_id)
    with folder.lock():
        mirror = start_mirror(outputs, [run_id], "s", 0.1)
        for last in range(6, 26):
            write_lines(folder, train_lines(last, last), "a")
            if last % 5 == 0:
                assert sync(outputs, "s") == 0
        folder.write_status("finished")
    assert mirror.stop()
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 26))


@pytest.mark.usefixtures("forked_mirrors")
def test_status_sets_right_what_died_without_a_word(outputs, tmp_path, capsys):
    settings = {**CONFIG, "cl_mode": "none"}
    (tmp_path / "base.yaml").write_text(yaml_file.dump(settings))
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nbase: base.yaml\ngrid: {cl_mode: [none]}\n")
    run_id = make_run(outputs, train_lines(1, 5), state="running", cl_mode="none")
    with run_folder(outputs, run_id).lock():
        mirror_once(outputs, [run_id], "s")
        assert main_sweep(["status", str(file), "--outputs", str(outputs)]) == 0
        assert not (outputs / "sweeps" / "s" / "tracking.log").exists()  # it is correct as it is
    assert runs_of(outputs)[run_id].info.status == "RUNNING"
    assert main_sweep(["status", str(file), "--outputs", str(outputs)]) == 0
    assert run_id in capsys.readouterr().out
    wait_for(lambda: runs_of(outputs)[run_id].info.status == "FAILED")
    wait_for(lambda: runs_of(outputs, "densevit.sweep")["s"].info.status == "FAILED")


def test_a_store_that_was_put_back_as_it_was_before_is_not_up_to_date(filled, capsys):
    outputs, (a, *_) = filled
    folder = run_folder(outputs, a)
    folder.write_status("running")
    with folder.lock():
        assert sync(outputs) == 0
        backup = (outputs / "mlflow.db").read_bytes()
        write_lines(folder, train_lines(5, 9), "a")
        folder.write_status("finished")
    assert sync(outputs) == 0
    (outputs / "mlflow.db").write_bytes(backup)
    capsys.readouterr()
    done = forked.done(["sync", "--outputs", outputs])  # MLflow would keep the other file open
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == ["one: up to date (2 runs)", "two: up to date (2 runs)"]
    assert len(history(outputs, a, "train/loss")) == 9
    assert runs_of(outputs)[a].info.status == "FINISHED"
    assert sync(outputs) == 0
    assert "sending" not in capsys.readouterr().out


def test_states_are_set_right_by_one_process_at_a_time_and_not_for_ever(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 5), state="running")
    with run_folder(outputs, run_id).lock():
        mirror_once(outputs, [run_id], "s")
    client_of(outputs).delete_run(runs_of(outputs)[run_id].info.run_id)
    started = []

    class Mirror:
        def request_end(self):
            mirror_once(outputs, [run_id], "s")

    monkeypatch.setattr(
        mirror_process, "start_mirror", lambda *given: started.append(given) or Mirror()
    )
    for _ in range(3):
        fix_states(outputs, [run_id], "s")
    assert len(started) == 1
    monkeypatch.setattr(mirror_process, "FIX_SECONDS", 0.0)
    fix_states(outputs, [run_id], "s")  # it stays deleted, and that is known
    assert len(started) == 1
    monkeypatch.setattr(mirror_process, "run_folder", _raise)
    fix_states(outputs, [run_id], "s")


def _raise(*_):
    raise PermissionError("read-only")


def test_an_account_that_is_refused_and_a_schema_are_mistakes(filled, capsys, monkeypatch):
    outputs, _ = filled

    def refuse(*given, **named):
        raise MlflowException("API request to endpoint /x failed with error code 401 != 200. 'No'")

    monkeypatch.setattr("mlflow.MlflowClient.get_experiment_by_name", refuse)
    monkeypatch.setattr("mlflow.MlflowClient.search_experiments", refuse)
    assert sync(outputs) == 2
    err = capsys.readouterr().err
    assert "rejects this account (401); set MLFLOW_TRACKING_USERNAME" in err
    assert "nothing more can be sent" in err
