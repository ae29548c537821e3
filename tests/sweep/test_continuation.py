"""A plan says what its runs start from, and which could go on from finished ones."""

from densevit.runs.directory import run_folder
from densevit.sweep.continuation import shorter_runs, start_lines
from densevit.sweep.plan import make_plan
from densevit.sweep.plan_record import plan_record
from densevit.utils.files import write_json


def plan_of(tmp_path, text):
    (tmp_path / "sweep.yaml").write_text(f"name: a\n{text}")
    return make_plan(tmp_path / "sweep.yaml", tmp_path / "out")


def test_more_epochs_are_a_continuation_if_the_user_wants_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = "fixed: {{epochs: {}}}\ngrid: {{cl_mode: [none, dense]}}\nseeds: 2\n"
    short = plan_of(tmp_path, text.format(100))
    assert start_lines(short) == []
    write_json(short.folder / "plan.json", plan_record(short, short.statuses()))
    done = [run for run in short.runs if run.config.cl_mode == "none"]
    for run in done:
        folder = run_folder(short.outputs, run.id)
        folder.create(run.config)
        folder.write_status("finished", epoch=100)
    longer = plan_of(tmp_path, text.format(150))
    wanted = [run for run in longer.runs if run.config.cl_mode == "none"]
    assert shorter_runs(longer) == [(w, d.id, 100) for w, d in zip(wanted, done, strict=True)]
    (line,) = start_lines(longer)
    folder = short.outputs / "runs" / done[0].id
    assert line.startswith(f"2 runs would train again what a finished run has, with more epochs: "
                           f"{wanted[0].id} all 150, of which {done[0].id} has 100; ")  # fmt: skip
    assert f"set init_checkpoint: {folder} and" in line
    assert shorter_runs(plan_of(tmp_path, text.format(50))) == []
    # As it says:
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "step-00000009-0123456789abcdef.pt").touch()
    plan = plan_of(tmp_path, f"fixed: {{epochs: 50, cl_mode: none, init_checkpoint: {folder}}}\n")
    assert start_lines(plan) == [
        f"init_checkpoint: {folder} (0123456789abcdef, run {done[0].id} after 100 epochs)"
    ]
