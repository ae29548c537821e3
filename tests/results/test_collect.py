from densevit.results.collect import collect, coverage, gather
from densevit.rundir import write_atomic, write_json

GRID = "grid: {cl_mode: [none, global, dense]}"


def test_a_row_a_run_benchmark_and_metric(sweep, finish_all):
    plan = sweep(GRID, "seeds: 2")
    numbers = finish_all(plan)
    frame = collect(plan)
    assert len(frame) == 6 * 3 * 4
    top1 = frame[frame["metric"] == "top1"]
    found = {(row.run, row.benchmark): row.value for row in top1.itertuples()}
    assert found == {(run, b): v for run, by in numbers.items() for b, v in by.items()}
    assert set(frame["state"]) == {"finished"}
    assert set(frame["n"]) == {500}


def test_what_is_not_finished_has_no_numbers_but_is_covered(sweep, finish):
    plan = sweep(GRID, "seeds: 2")
    finished, failed, running, cancelled, pending, empty = plan.runs
    for run in (finished, failed, running, cancelled):  # numbers alone do not make a run finished
        finish(plan, run, {"val": 50.0})
    plan.run_folder(failed).write_status("failed", message="out of memory")
    plan.run_folder(cancelled).write_status("cancelled")
    folder = plan.run_folder(running)
    folder.write_status("running")
    plan.run_folder(empty).create(empty.config)
    plan.run_folder(empty).write_status("finished")
    with folder.lock():
        frame, covered = gather(plan)
    assert set(frame["run"]) == {finished.id}
    states = dict(zip(covered["run"], covered["state"], strict=True))
    assert states == {
        finished.id: "finished", failed.id: "failed", running.id: "running",
        cancelled.id: "cancelled", pending.id: "pending", empty.id: "finished",
    }  # fmt: skip
    assert list(covered["measured"]) == [True, False, False, False, False, False]
    messages = dict(zip(covered["run"], covered["message"], strict=True))
    assert messages[failed.id] == "out of memory"
    assert "results.json: no such file" in messages[empty.id]


def test_damaged_files_are_told_and_stop_nothing(sweep, finish_all):
    plan = sweep(GRID, "seeds: 2")
    finish_all(plan)
    cut, foreign, odd, status, *good = plan.runs
    write_atomic(plan.run_folder(cut).results_file, '{"run": "')
    write_json(plan.run_folder(foreign).results_file, {"run": "other", "benchmarks": {}})
    write_json(plan.run_folder(odd).results_file, {"run": odd.id, "benchmarks": {"val": 3}})
    write_atomic(plan.run_folder(status).status_file, "{")
    frame, covered = gather(plan)
    assert set(frame["run"]) == {run.id for run in good}
    messages = list(covered["message"])
    assert "cannot be read" in messages[0]
    assert "holds run 'other'" in messages[1]
    assert "not as it should be" in messages[2]
    assert "cannot be read" in messages[3]


def test_nothing_there_at_all(sweep):
    plan = sweep(GRID)
    assert collect(plan).empty
    assert list(coverage(plan)["state"]) == ["pending"] * 3
