"""What MLflow shows of a run and a sweep, and that it is sent once."""

import json
import shutil
import socket
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_metric_name
from rundirs import (
    START,
    artifacts_of,
    begin,
    client_of,
    history,
    looking,
    make_plan,
    make_run,
    runs_of,
    train_lines,
    write_lines,
)

from densevit.runs.directory import run_folder, sweep_folder
from densevit.tracking import mlflow_fields, store
from densevit.tracking.mirror_process import mirror_once, up_to_date
from densevit.tracking.mlflow_fields import metric_key
from densevit.utils.errors import UserError
from densevit.utils.files import write_atomic, write_json

NOTHING: tuple = ([], [])
NOTE = "mlflow.note.content"


def test_texts_of_others_reach_mlflow_without_what_acts(new_outputs):
    """MLflow shows a note as Markdown; PostgreSQL refuses a NUL; a plan names no tag of ours."""
    nasty = '"><script>alert(1)</script>|\x1b]0;x\x07\u202e\x00\udc9b [a](javascript:b)'
    shown = '"><script>alert(1)</script>|\ufffd]0;x\ufffd\ufffd\ufffd? [a](javascript:b)'
    run_id = make_run(new_outputs, train_lines(1, 2), model_name="vit_tiny_patch16_224")
    folder = run_folder(new_outputs, run_id)
    begin(folder, host=nasty, command=nasty, git_sha=nasty, launcher=nasty, job=nasty)
    axes = {"cl_mode": nasty, nasty: "x", "densevit.cell": "x", "mlflow.user": "x"}
    about = {"label": nasty, "axes": axes, "differs": nasty}
    make_plan(new_outputs, "s", [run_id], description=nasty, axes=[nasty], **{run_id: about})
    info, config = mlflow_fields.read_sweep_info(new_outputs, "s"), folder.config()
    assert mlflow_fields.run_name(folder, config, info) == f"{shown}, seed 0"
    tags = mlflow_fields.run_tags(folder, config, info)
    assert tags["cl_mode"] == tags["densevit.host"] == tags["densevit.job"] == shown
    assert not {nasty, "mlflow.user"} & tags.keys()
    assert tags["densevit.cell"] not in ("", "x")
    parent = mlflow_fields.sweep_tags(info)
    for note in (tags[NOTE], parent[NOTE]):
        assert "\\<script>alert(1)\\</script>" in note
        assert "[a\\](javascript" in note
    for value in (*tags.values(), *parent.values()):
        assert not set(value) & {"\x1b", "\x07", "\u202e", "\x00", "\udc9b"}
    _validate_metric_name(metric_key(f"{nasty}/top1"))


def test_a_child_says_what_it_is_and_what_it_differs_in(outputs):
    tests = {"mine": {"path": "/b", "classes": "imagenet"}, "imagenet-a": None}
    run_id = make_run(outputs, train_lines(1, 2), cl_mode="none", seed=4, benchmarks=tests)
    about = {"label": "none · 0.2", "axes": {"cl_mode": "none", "drop_path": 0.2},
             "differs": "cl_mode: none (there dense)"}  # fmt: skip
    make_plan(outputs, "s", [run_id], description="Why?", git_sha="f00", axes=["cl_mode"],
              **{run_id: about})  # fmt: skip
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    run, parent = runs_of(outputs)[run_id], runs_of(outputs, "densevit.sweep")["s"]
    assert run.info.run_name == "none · 0.2, seed 4"
    assert run.data.tags["cl_mode"] == "none"
    assert run.data.tags["drop_path"] == "0.2"
    told = json.loads(run.data.tags["densevit.benchmarks"])
    assert told == {"mine": tests["mine"] | {"label_column": None}, "imagenet-a": None}
    assert run.data.tags[NOTE] == (
        "Difference from the baseline of s: cl_mode: none (there dense)."
    )
    assert run.data.tags["densevit.host"] == "here"
    assert run.data.tags["densevit.restarts"] == "0"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert parent.data.tags[NOTE] == "Why?"
    assert parent.data.tags["mlflow.source.git.commit"] == "f00"
    assert parent.data.tags["densevit.axes"] == "cl_mode"


def test_a_run_that_is_started_again_elsewhere_is_the_same_run_with_other_facts(outputs):
    run_id = make_run(outputs, train_lines(1, 2), state="cancelled")
    mirror = looking(outputs, run_id)
    mirror.update(last=False)
    folder = run_folder(outputs, run_id)
    begin(folder, host="there", launcher="slurm", job="7_1")
    folder.write_status("running", started=START + 100)
    with folder.lock():
        write_lines(folder, train_lines(3, 4), "a")
        for look in (mirror, looking(outputs, run_id)):  # one that survived, and a new one
            assert look.update(last=False).problems == []
            run = runs_of(outputs)[run_id]
            assert run.info.status == "RUNNING"
            tags = {k: run.data.tags[f"densevit.{k}"] for k in ("host", "launcher", "job")}
            assert tags == {"host": "there", "launcher": "slurm", "job": "7_1"}
            assert run.data.tags["densevit.restarts"] == "1"
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == [1, 2, 3, 4]


def test_artifacts_come_once_and_again_when_they_have_changed(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 2), state="running")
    make_plan(outputs, "s", [run_id])
    folder = run_folder(outputs, run_id)
    (folder.path / "predictions").mkdir()
    folder.predictions_file("val").write_bytes(b"answers")
    (folder.path / "predictions" / ".half").write_bytes(b"x")
    mirror = looking(outputs, run_id, sweep="s")
    with folder.lock():
        mirror.update(last=False)
    mlflow_id = runs_of(outputs)[run_id].info.run_id
    assert artifacts_of(outputs, mlflow_id) == {"config.yaml", "provenance.json"}
    folder.write_status("finished", started=START)
    picture = sweep_folder(outputs, "s") / "report" / f"matches-{run_id}.png"
    write_atomic(picture, b"a picture")
    write_atomic(folder.matches_file("after"), b"pairs")
    assert mirror.update(last=True).problems == []
    wanted = {"config.yaml", "provenance.json", "identity.json", "predictions/val.parquet",
              "matches/after.npz", "matches/correspondences-s.png"}  # fmt: skip
    assert artifacts_of(outputs, mlflow_id) == wanted
    stored = outputs / "mlartifacts" / mlflow_id / "artifacts" / "matches"
    assert (stored / "correspondences-s.png").read_bytes() == b"a picture"

    sent = []
    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", lambda *given: sent.append(given[2:]))
    write_atomic(picture, b"a picture")  # as each report does
    assert up_to_date(outputs, [run_id], "s")
    assert looking(outputs, run_id, sweep="s").update(last=True).problems == []
    assert sent == []
    write_atomic(folder.results_file, "{}\n")
    assert not up_to_date(outputs, [run_id], "s")
    looking(outputs, run_id, sweep="s").update(last=True)
    assert sent == [(str(folder.results_file), None)]
    assert up_to_date(outputs, [run_id], "s")


def test_what_mlflow_does_not_take_is_told_once_and_stays_whole_in_the_files(outputs):
    lines = [{**line, "dense-probe/iou_café (old)": 3.0, "a//b": 1.0} for line in train_lines(1, 2)]
    long = {"x": "y" * 7000}
    run_id = make_run(outputs, lines, model_kwargs=long)
    problems, notes = mirror_once(outputs, [run_id])
    assert problems == []
    assert len(notes) == 2
    assert notes[0].startswith(f"{run_id}: model_kwargs: cut to MLflow's limit of 6000 characters")
    renamed = metric_key("dense-probe/iou_café (old)")
    assert f"dense-probe/iou_café (old) is called {renamed}" in notes[1]
    assert [p[1] for p in history(outputs, run_id, renamed)] == [3.0, 3.0]
    assert [p[1] for p in history(outputs, run_id, metric_key("a//b"))] == [1.0, 1.0]
    param = runs_of(outputs)[run_id].data.params["model_kwargs"]
    assert len(param) == 6000
    assert json.dumps(long).startswith(param[:-1])
    write_lines(run_folder(outputs, run_id), [{**lines[1], "step": 3}], "a")
    assert mirror_once(outputs, [run_id])[1] == notes[:1]


@given(st.lists(st.text(st.characters(), min_size=1, max_size=300), unique=True, max_size=20))
def test_every_name_of_a_metric_has_one_that_mlflow_takes_and_no_two_share_it(names):
    keys = [metric_key(name) for name in names]
    for name, key in zip(names, keys, strict=True):
        _validate_metric_name(key)
        assert len(key) <= 250
        assert key == metric_key(name)
    assert len(set(keys)) == len(names)


@pytest.mark.parametrize("name", ["train/loss", "imagenet-a/top1_low", "mine/iou_traffic light"])
def test_a_usual_name_is_kept(name):
    assert metric_key(name) == name


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "c"]),
            st.floats() | st.sampled_from(["NaN", "Infinity", "-Infinity", "text", None, True]),
        ),
        max_size=30,
    ),
    st.dictionaries(st.sampled_from(["a", "b"]), st.sets(st.integers(0, 10), min_size=1)),
)
def test_points_are_those_of_the_lines_that_the_store_has_not(lines, there):
    written = [{"step": n // 2, "epoch": 0, "time": START, **x} for n, x in enumerate(lines)]
    asked = []
    last = {key: max(steps) for key, steps in there.items()}
    found = mlflow_fields.new_points(written, last, lambda key: asked.append(key) or there[key])
    assert len(asked) == len(set(asked))
    got = [(p.key, p.step) for p in found.points]
    wanted = {}
    for line in written:
        for key in "abc":
            number = line.get(key)
            if isinstance(number, float) or (isinstance(number, str) and number != "text"):
                wanted.setdefault((key, line["step"]), repr(float(number)))
    assert set(asked) == {key for key, step in wanted if step <= last.get(key, -1)}
    wanted = {k: v for k, v in wanted.items() if k[1] not in there.get(k[0], ())}
    assert sorted(got) == sorted(wanted)
    assert {(p.key, p.step): repr(p.value) for p in found.points} == wanted


def test_a_run_that_was_deleted_stays_so_until_it_is_wanted_again(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    other = make_run(outputs, train_lines(1, 3), seed=1)
    mirror = looking(outputs, run_id, other)
    mirror.update(last=False)
    mlflow_id = runs_of(outputs)[run_id].info.run_id
    client_of(outputs).delete_run(mlflow_id)
    write_lines(run_folder(outputs, run_id), train_lines(4, 6), "a")
    told = f"{run_id}: was deleted in MLflow; densevit sync {run_id} restores it"
    for look in (mirror, looking(outputs, run_id, other)):
        assert (look.update(last=False).problems, look.update(last=False).notes) == ([], [told])
    assert set(runs_of(outputs)) == {other}
    assert mirror_once(outputs, [run_id], restore=True) == NOTHING
    assert runs_of(outputs)[run_id].info.run_id == mlflow_id
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_deleted_experiment_is_told_in_one_line_and_restored_on_demand(outputs):
    runs = [make_run(outputs, train_lines(1, 3), seed=seed) for seed in range(5)]
    assert mirror_once(outputs, runs, "s") == NOTHING
    client = client_of(outputs)
    client.delete_experiment(client.get_experiment_by_name("tests").experiment_id)
    runs.append(make_run(outputs, train_lines(1, 3), seed=9))
    problems, notes = mirror_once(outputs, runs, "s")
    assert problems == []
    assert len(notes) == 1
    assert "and 4 more: experiment 'tests' was deleted in MLflow; densevit sync NAME" in notes[0]
    assert mirror_once(outputs, runs, "s", restore=True) == NOTHING
    assert set(runs_of(outputs)) == set(runs)
    assert up_to_date(outputs, runs, "s")


def test_children_of_a_deleted_parent_are_sent_all_the_same(outputs):
    run_id = make_run(outputs, train_lines(1, 3))
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    parent = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    client_of(outputs).delete_run(parent)
    write_lines(run_folder(outputs, run_id), train_lines(4, 5), "a")
    told = "sweep s: was deleted in MLflow; densevit sync s restores it"
    assert mirror_once(outputs, [run_id], "s") == ([], [told])
    assert len(history(outputs, run_id, "train/loss")) == 5
    assert mirror_once(outputs, [run_id], "s", restore=True) == NOTHING
    assert runs_of(outputs, "densevit.sweep")["s"].info.run_id == parent


def test_a_store_that_was_emptied_under_a_living_mirror_is_filled_again(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    mirror = looking(outputs, run_id, sweep="s")
    folder = run_folder(outputs, run_id)
    with folder.lock():
        mirror.update(last=False)
        client = client_of(outputs)
        for run in [*runs_of(outputs).values(), *runs_of(outputs, "densevit.sweep").values()]:
            client._tracking_client.store._hard_delete_run(run.info.run_id)
        write_lines(folder, train_lines(4, 5), "a")
        assert mirror.update(last=False).problems == []
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == [1, 2, 3, 4, 5]
    parent = runs_of(outputs, "densevit.sweep")["s"].info.run_id
    assert runs_of(outputs)[run_id].data.tags["mlflow.parentRunId"] == parent


@pytest.mark.parametrize("cut_to", [3, 6])
def test_two_mirrors_that_both_live_send_a_step_of_a_resumed_run_once(outputs, cut_to):
    """One of them must not trust what it knows of the store: the other one has written to it."""
    run_id = make_run(outputs, train_lines(1, 6), state="running")
    folder = run_folder(outputs, run_id)
    first, second = looking(outputs, run_id), looking(outputs, run_id)
    first.update(last=False)
    second.update(last=False)
    write_lines(folder, train_lines(7, 9), "a")
    first.update(last=False)
    again = train_lines(cut_to + 1, 12, offset=500.0)
    write_lines(folder, train_lines(1, cut_to) + again)
    second.update(last=False)
    first.update(last=False)
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 13))


@pytest.mark.parametrize("behind", [0, 60], ids=["one clock", "a clock behind"])
def test_two_machines_that_make_a_run_at_the_same_time_end_with_one(outputs, monkeypatch, behind):
    """The second one has searched before the first one had created the run."""
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    make_plan(outputs, "s", [run_id], begun=2.5)
    folder = run_folder(outputs, run_id)
    with folder.lock():
        first = looking(outputs, run_id, sweep="s")
        assert first.update(last=False).problems == []
        found, asked = store._runs_by_key, []

        def not_yet(*given):
            asked.append(given)
            return [] if len(asked) < 3 else found(*given)  # the parent, and the run

        with monkeypatch.context() as patch:
            folder.tracking_file.unlink()  # another machine's disk does not show it
            (outputs / "sweeps" / "s" / "tracking.json").unlink(missing_ok=True)
            patch.setattr(store, "_runs_by_key", not_yet)
            clock = time.time_ns()
            patch.setattr(store.time, "time_ns", lambda: clock - behind * 10**9)
            second = looking(outputs, run_id, sweep="s")
            assert second.update(last=False).problems == []
        for last in range(4, 8):
            write_lines(folder, train_lines(last, last), "a")
            assert (first if last % 2 else second).update(last=False).problems == []
    parent = runs_of(outputs, "densevit.sweep")["s"]  # each once
    assert runs_of(outputs)[run_id].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 8))


def test_a_run_that_another_machine_has_replaced_is_not_taken_for_one_that_a_person_deleted(
    outputs,
):
    run_id = make_run(outputs, train_lines(1, 3))
    assert mirror_once(outputs, [run_id]) == NOTHING
    client, ours = client_of(outputs), runs_of(outputs)[run_id]
    tags = {name: ours.data.tags[name] for name in (mlflow_fields.RUN, mlflow_fields.BEGUN)}
    theirs = client.create_run(ours.info.experiment_id, tags=tags).info.run_id
    client.delete_run(ours.info.run_id)
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert runs_of(outputs)[run_id].info.run_id == theirs
    assert len(history(outputs, run_id, "train/loss")) == 3


def test_a_run_that_is_trained_anew_or_by_somebody_else_is_another_one(outputs):
    run_id = make_run(outputs, train_lines(1, 9))
    assert mirror_once(outputs, [run_id]) == NOTHING
    shutil.rmtree(run_folder(outputs, run_id).path)
    assert make_run(outputs, train_lines(1, 3, offset=1e6), time=START + 1e6) == run_id
    assert not up_to_date(outputs, [run_id])
    assert mirror_once(outputs, [run_id]) == NOTHING
    client = client_of(outputs)
    found = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    old, new = sorted(found, key=lambda run: run.info.start_time)
    points = {run: client.get_metric_history(run.info.run_id, "train/loss") for run in (old, new)}
    assert [len(points[old]), len(points[new])] == [9, 3]
    assert new.info.start_time == int((START + 1e6) * 1000)
    assert up_to_date(outputs, [run_id])


def test_a_run_of_another_machine_that_cannot_be_seen_to_have_died_is_running(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    folder = run_folder(outputs, run_id)
    assert folder.remote_status().state == "failed"  # of this machine, whose locks are visible
    record = json.loads(folder.status_file.read_text())
    assert record["host"] == socket.gethostname()
    write_json(folder.status_file, {**record, "host": "elsewhere"})
    mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.status == "RUNNING"
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "RUNNING"
    write_json(folder.status_file, {**record, "host": "elsewhere", "updated": time.time() - 9e4})
    mirror_once(outputs, [run_id], "s")
    assert runs_of(outputs)[run_id].info.status == "FAILED"


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        (("finished", "stopped"), "FINISHED"),
        (("finished", "failed"), "FAILED"),
        (("finished", "cancelled"), "KILLED"),
        (("finished", "pending"), "SCHEDULED"),
        (("cancelled", "failed"), "FAILED"),
    ],
)
def test_the_sweeps_state_follows_from_its_runs(outputs, states, wanted):
    runs = []
    for seed, state in enumerate(states):
        runs.append("0123456789ab")
        if state != "pending":
            runs[-1] = make_run(outputs, [], state=state, seed=seed)
    make_plan(outputs, "s", runs)
    # Of a job, which knows only one of its sweep's runs.
    assert mirror_once(outputs, runs[:1], "s") == NOTHING
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == wanted


@pytest.mark.parametrize("what", ["line", "artifact", "model"])
def test_what_cannot_be_sent_leaves_no_run_running_and_stops_no_other(outputs, monkeypatch, what):
    """A damaged line, an artifact store that does not work, a run without a network."""
    bad = make_run(outputs, train_lines(1, 3), state="running", log_model=what == "model")
    good = make_run(outputs, train_lines(1, 3), seed=1)
    mirror = looking(outputs, bad, good, sweep="s")
    folder = run_folder(outputs, bad)
    with folder.lock():
        mirror.update(last=False)
    if what == "line":
        folder.metrics_file.write_text('{"step": 1, "ti\n')
    elif what == "artifact":
        log = mlflow.MlflowClient.log_artifact

        def refuse(client, run, path, place=None):
            if bad in path:
                raise MlflowException("no such bucket")
            log(client, run, path, place)

        monkeypatch.setattr("mlflow.MlflowClient.log_artifact", refuse)
    folder.write_status("finished", started=START)
    for look in (
        mirror.update(last=True),
        looking(outputs, bad, good, sweep="s").update(last=True),
    ):
        if what != "model":
            (problem,) = look.problems
            assert problem.startswith(f"{bad}: ")
        assert {run.info.status for run in runs_of(outputs).values()} == {"FINISHED"}
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"
    assert len(history(outputs, good, "train/loss")) == 3
    # A second attempt to send a network cannot succeed.
    assert up_to_date(outputs, [bad], "s") == (what == "model")
    assert up_to_date(outputs, [good])


def test_a_network_that_cannot_be_exported_is_told_once_and_tried_again_on_demand(
    outputs, monkeypatch
):
    run_id = make_run(outputs, train_lines(1, 3), log_model=True)
    asked = []

    def refuse(*given):
        asked.append(given)
        raise UserError("torch cannot export the network")

    monkeypatch.setattr("densevit.tracking.mlflow_model.log_model", refuse)
    told = f"{run_id}: torch cannot export the network; densevit sync NAME tries it again"
    assert mirror_once(outputs, [run_id]) == ([], [told])
    assert mirror_once(outputs, [run_id]) == NOTHING
    assert len(asked) == 1
    assert mirror_once(outputs, [run_id], restore=True) == ([], [told])
    monkeypatch.setattr(
        "densevit.tracking.mlflow_model.log_model", lambda *given: asked.append(given)
    )
    assert mirror_once(outputs, [run_id], restore=True) == NOTHING
    assert mirror_once(outputs, [run_id], restore=True) == NOTHING
    assert len(asked) == 3


def test_one_artifact_that_is_refused_does_not_make_the_others_be_sent_again(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 3))
    asked = []

    def refuse(client, run, path, place=None):
        asked.append(Path(path).name)
        if path.endswith("provenance.json"):
            raise MlflowException("too large")

    monkeypatch.setattr("mlflow.MlflowClient.log_artifact", refuse)
    for _ in range(3):
        assert looking(outputs, run_id).update(last=True).problems
    assert asked == ["config.yaml", "identity.json", *["provenance.json"] * 3]


def test_what_never_started_is_not_shown_until_it_has(outputs):
    """A run that is cancelled while it waits has an end and no beginning."""
    run_id = make_run(outputs, [], state="cancelled")
    folder = run_folder(outputs, run_id)
    provenance = folder.provenance_file.read_bytes()
    folder.provenance_file.unlink()
    make_plan(outputs, "s", [run_id])
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    assert client_of(outputs).get_experiment_by_name("tests") is None
    assert up_to_date(outputs, [run_id], "s")
    folder.provenance_file.write_bytes(provenance)
    write_lines(folder, train_lines(1, 3))
    folder.write_status("finished", started=START)
    assert mirror_once(outputs, [run_id], "s") == NOTHING
    assert runs_of(outputs)[run_id].info.status == "FINISHED"
    folder.provenance_file.write_text("{half")
    assert mirror_once(outputs, [run_id], "s")[0][0].startswith(
        f"{run_id}: {folder.provenance_file}"
    )


def test_a_run_that_cannot_be_described_any_more_has_its_end_all_the_same(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    folder = run_folder(outputs, run_id)
    with folder.lock():
        mirror_once(outputs, [run_id])
    folder.config_file.write_text("cl_mode: sparse\n")
    folder.write_status("failed", started=START)
    problems, _ = mirror_once(outputs, [run_id])
    assert "config.yaml: cl_mode" in problems[0]
    assert runs_of(outputs)[run_id].info.status == "FAILED"


def test_a_lock_that_cannot_be_had_stops_no_other_run(outputs, monkeypatch):
    bad, good = (make_run(outputs, train_lines(1, 3), seed=seed) for seed in range(2))
    run_folder(outputs, bad).tracking_lock.mkdir()
    problems, notes = mirror_once(outputs, [bad, good], "s")
    assert notes == []
    assert len(problems) == 1
    assert problems[0].startswith(f"{bad}: IsADirectoryError")
    assert len(history(outputs, good, "train/loss")) == 3
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "FINISHED"


def test_the_sweeps_of_others_with_the_same_name_are_theirs(outputs):
    """On one server: a colleague's, one of a version that recorded no beginning, and mine."""
    client = client_of(outputs)
    experiment = client.create_experiment("tests")
    run_id = make_run(outputs, train_lines(1, 3))
    theirs = []
    for begun in ({}, {"densevit.begun": "1.5"}):
        tags = {"densevit.sweep": "s", "note": "theirs", **begun}
        theirs.append(client.create_run(experiment, tags=tags).info.run_id)
        theirs.append(
            client.create_run(experiment, tags={"densevit.run": run_id, **begun}).info.run_id
        )
    make_plan(outputs, "s", [run_id], begun=2.5)
    for _ in range(2):
        assert mirror_once(outputs, [run_id], "s") == NOTHING
    for other in theirs:
        run = client.get_run(other)
        assert run.info.lifecycle_stage == "active"
        assert "densevit.sweeps" not in run.data.tags
        assert run.data.metrics == {}
    assert len(client.search_runs([experiment])) == 6


def test_runs_of_several_experiments_have_one_parent(outputs):
    runs = [make_run(outputs, train_lines(1, 3), seed=seed) for seed in range(2)]
    runs.append(make_run(outputs, train_lines(1, 3), seed=2, experiment_name="others"))
    make_plan(outputs, "s", runs, begun=2.5)
    for _ in range(2):
        assert mirror_once(outputs, runs, "s") == NOTHING
    client = client_of(outputs)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (parent,) = client.search_runs(ids, "tags.`densevit.sweep` = 's'")
    assert parent.info.status == "FINISHED"
    assert parent.info.start_time == 2500
    children = client.search_runs(ids, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 3


def test_a_parent_that_is_deleted_under_a_living_mirror_stays_so(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    folder = run_folder(outputs, run_id)
    mirror = looking(outputs, run_id, sweep="s")
    with folder.lock():
        mirror.update(last=False)
        mirror.update(last=False)
        client_of(outputs).delete_run(runs_of(outputs, "densevit.sweep")["s"].info.run_id)
        folder.write_status("finished", started=START)
    look = mirror.update(last=True)
    assert look.problems == []
    assert look.notes == ["sweep s: was deleted in MLflow; densevit sync s restores it"]
    assert runs_of(outputs)[run_id].info.status == "FINISHED"


def test_a_store_that_is_put_back_under_a_living_mirror_has_no_hole(outputs):
    run_id = make_run(outputs, train_lines(1, 3), state="running")
    folder = run_folder(outputs, run_id)
    mirror = looking(outputs, run_id)
    with folder.lock():
        mirror.update(last=False)
        write_lines(folder, train_lines(4, 9), "a")
        mirror.update(last=False)
        with closing(sqlite3.connect(outputs / "mlflow.db")) as database, database:
            database.execute("DELETE FROM metrics WHERE step > 3")
            database.execute("UPDATE latest_metrics SET step = 3")
        write_lines(folder, train_lines(10, 12), "a")
        assert mirror.update(last=False).problems == []
    assert [p[0] for p in history(outputs, run_id, "train/loss")] == list(range(1, 13))


def test_a_plan_is_read_once_and_again_when_it_is_another_one(outputs, monkeypatch):
    run_id = make_run(outputs, train_lines(1, 2))
    make_plan(outputs, "s", [run_id])
    read, seen = mlflow_fields.read_sweep_info, []
    monkeypatch.setattr(
        mlflow_fields, "read_sweep_info", lambda *given: seen.append(given) or read(*given)
    )
    mirror = looking(outputs, run_id, sweep="s")
    for _ in range(3):
        mirror.update(last=False)
    assert len(seen) == 1
    make_plan(outputs, "s", [run_id, "0123456789ab"])
    mirror.update(last=True)
    assert len(seen) == 2
    assert runs_of(outputs, "densevit.sweep")["s"].info.status == "SCHEDULED"
