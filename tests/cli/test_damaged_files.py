"""Every file of a run directory and of a sweep's folder, damaged in every way, before each command.

A command names the file in one line and exits with 2, or goes on with the other runs.
"""

import json
import random
import shutil

import damage
import pytest

from densevit.cli.sweep import main_sweep
from densevit.launch.launchers import observe
from densevit.launch.slurm import attempts, commands, submissions
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.stored_plan import read_stored_plan
from densevit.utils.errors import UserError

CASES = 250  # of the whole matrix, in the normal suite


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return made-up outputs, and keep a copy of them beside."""
    folder = tmp_path_factory.mktemp("damaged")
    made = damage.make_outputs(folder)
    shutil.copytree(made.plan.outputs, folder / "whole")
    return made


@pytest.fixture(autouse=True)
def _alone(made, monkeypatch):
    """Whole outputs, a Slurm without jobs, an own store; and nothing is started."""
    damage.restored(made.plan.outputs.parent / "whole", made.plan.outputs)
    monkeypatch.setattr(commands, "queue", lambda users: {})
    monkeypatch.setattr(commands, "accounts", lambda jobs: {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made.plan.outputs.parent}/mlflow.db")
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.plan.outputs.parent / "cache"))
    monkeypatch.setattr("densevit.results.report.figures.draw_all", lambda *_: {})


def survived(made, name, path, harm, command, call):
    """Return what is wrong with a command's reaction to a damaged file, "" if nothing."""
    damage.restored(made.plan.outputs.parent / "whole", made.plan.outputs)
    harm.apply(path)
    before = path.read_bytes() if path.is_file() else None
    outcome = damage.call(call)
    case = f"{command}, {name}: {harm.name}: "
    if outcome.is_wrong:
        return f"{case}code {outcome.code}, {outcome.error!r} {outcome.err[-300:]}"
    if outcome.code == 2 and len(outcome.err.splitlines()) != 1:
        return f"{case}not one line: {outcome.err}"
    if before is not None and (not path.is_file() or path.read_bytes() != before):
        return f"{case}the file was overwritten"
    return ""


def test_no_command_fails_on_a_damaged_file(made):
    chosen = damage.sampled(made, CASES, seed=0)
    assert [text for case in chosen if (text := survived(made, *case))] == []


READERS = {
    "status.json": lambda made: made.plan.run_folder(made.finished).recorded_status(),
    "identity.json": lambda made: made.plan.run_folder(made.finished).ids(),
    "provenance.json": lambda made: made.plan.run_folder(made.finished).provenance(),
    "fingerprint.json": lambda made: made.plan.run_folder(made.finished).fingerprint(),
    "results.json": lambda made: made.plan.run_folder(made.finished).results(),
    "metrics.jsonl": lambda made: read_metrics(made.plan.run_folder(made.finished).metrics_file),
    "config.yaml": lambda made: made.plan.run_folder(made.finished).config(),
    "attempts.json": lambda made: attempts.read(made.plan.run_folder(made.finished)),
    "plan.json": lambda made: read_stored_plan(made.plan.folder),
    "submission.json": lambda made: submissions.read_all(made.plan.outputs),
    "canary.json": lambda made: submissions.read_all(made.plan.outputs)[0].canary_result(),
}


def test_each_reader_returns_a_record_or_names_the_file_the_fault_and_the_way_out(made):
    wrong = []
    for name, path, harm in damage.harmed(made):
        if name not in READERS:
            continue
        whole = path.read_bytes()
        harm.apply(path)
        try:
            READERS[name](made)
        except UserError as error:
            text = str(error)
            if not text.startswith(f"{path}: ") or len(text.splitlines()) != 1:
                wrong.append(f"{name}, {harm.name}: {text}")
            if ";" not in text and name not in ("config.yaml", "metrics.jsonl"):
                wrong.append(f"{name}, {harm.name}: no way out: {text}")
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(whole)
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "record", "told"),
    [
        ("status", {"state": "done"}, "state: 'done' is not valid; "),
        ("status", {"state": "failed", "step": "9"}, "step: '9' must be a whole number; "),
        ("status", {"state": "failed", "spent": -1}, "spent: -1 is out of range; "),
        ("status", {}, "state: is missing; "),
        ("results", {"benchmarks": []}, "benchmarks: [] must be a mapping; "),
        ("provenance", {"starts": [{"threads": None}]}, "starts.0.threads: null must be a "),
    ],
)
def test_the_key_and_what_is_wrong_with_it_are_named(made, name, record, told):
    folder = made.plan.run_folder(made.finished)
    file = folder.path / f"{name}.json"
    file.write_text(json.dumps(record))
    reader = {"status": "recorded_status"}.get(name, name)
    with pytest.raises(UserError) as error:
        getattr(folder, reader)()
    assert str(error.value).startswith(f"{file}: is damaged: {told}")


def test_keys_of_another_version_are_kept(made):
    folder = made.plan.run_folder(made.finished)
    record = json.loads(folder.provenance_file.read_text())
    record["starts"][0]["later"] = record["later"] = {"a": [1, None]}
    folder.provenance_file.write_text(json.dumps(record))
    assert folder.provenance() == record


def test_bytes_of_a_file_name_in_a_message_are_no_damage(made):
    folder = made.plan.run_folder(made.failed)
    folder.write_status("failed", message="a\udcff.jpg: cannot be read", cause="code")
    assert folder.recorded_status().message == "a?.jpg: cannot be read"


def told(made, *words):
    outcome = damage.call(lambda: main_sweep([*words, "--outputs", str(made.plan.outputs)]))
    assert outcome.code == 0
    return outcome


def test_other_runs_go_on_and_the_damaged_one_is_named(made):
    file, run = str(made.plan.spec.file), made.finished
    status_file = made.plan.run_folder(run).status_file
    status_file.write_text("[]")
    record = json.loads(told(made, "status", file, "--json").out)
    states = {each["id"]: each["state"] for each in record["runs"]}
    assert states[run.id] == "failed"
    assert sorted(states.values()).count("finished") == 3
    for words in (("plan", file), ("status", file), ("logs", file, "--failed")):
        assert "finished" in told(made, *words).out or words[0] == "logs"
    assert str(status_file) in told(made, "plan", file).out
    assert str(status_file) in told(made, "explain", file, run.id).out


def test_a_damaged_fingerprint_is_named_and_the_report_shows_the_other_runs(made):
    folder = made.plan.run_folder(made.finished)
    folder.fingerprint_file.write_text("[]")
    (made.plan.folder / "plan.json").unlink()  # else what the last launch has checked is taken
    found = told(made, "report", str(made.plan.spec.file), "--format", "csv")
    assert found.err.startswith(f"warning: {folder.fingerprint_file}: is damaged: ")
    assert len(found.out.splitlines()) == 3


def test_no_run_starts_while_a_submission_cannot_be_read(made):
    file = next(made.plan.folder.glob("submissions/*/submission.json"))
    file.write_text("{}")
    observed = observe(made.plan)
    assert str(file) in observed.silent
    states = [observed.runs[run.id].state for run in made.plan.runs]
    assert sorted(states) == ["finished"] * 4 + ["unknown"] * 2
    assert str(file) in told(made, "status", str(made.plan.spec.file)).out


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_the_whole_matrix(made, monkeypatch, number):
    def fails(*_):
        raise UserError("made up: nothing is trained here")

    monkeypatch.setattr("densevit.train.loop.train", fails)
    monkeypatch.setattr("densevit.cli.sweep_retry.execute", lambda *_, **__: 0)
    every, some = damage.commands(made), damage.slow_commands(made)
    cases = [(*case, name, call) for case in damage.harmed(made) for name, call in every.items()]
    chosen = random.Random(number)
    cases += [
        (*case, name, call)
        for case in damage.harmed(made)
        for name, call in some.items()
        if chosen.random() < 0.03
    ]
    assert [text for case in cases[number::8] if (text := survived(made, *case))] == []
