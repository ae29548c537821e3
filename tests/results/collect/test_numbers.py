import json
import math

import numpy as np
import pytest

from densevit.config.identity import SCHEMA_VERSION
from densevit.results.collect.numbers import (
    collect,
    costs,
    coverage,
    curves,
    gather,
)
from densevit.utils.files import read_json, write_atomic, write_json

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
    for run in (finished, failed, running, cancelled):  # metrics alone do not make a run finished
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
    assert "is damaged" in messages[2]
    assert "cannot be read" in messages[3]


def test_nothing_there_at_all(sweep):
    plan = sweep(GRID)
    assert collect(plan).empty
    assert list(coverage(plan)["state"]) == ["pending"] * 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"schema_version": SCHEMA_VERSION - 1}, "has schema version 2, not 3"),
        ({"cell": "0123456789ab"}, "holds cell '0123456789ab'"),
        ({"seed": 7}, "holds seed 7, not 0"),
        ({"benchmarks": {"val": {"top1": "50", "n": 5}}}, "'50' is not a number"),
        ({"benchmarks": {"val": {"top1": 50.0}}}, "n is missing"),
    ],
)
def test_numbers_of_something_else_are_told_and_not_mixed_in(sweep, finish_all, changes, told):
    plan = sweep(GRID)
    finish_all(plan)
    collect(plan)
    other, *good = plan.runs
    file = plan.run_folder(other).results_file
    write_json(file, read_json(file) | changes)
    for _ in range(2):
        frame, covered = gather(plan)
        assert set(frame["run"]) == {run.id for run in good}
        states = covered[["state", "measured"]].to_numpy().tolist()
        # It holds something else, or is damaged.
        assert states[0] in (["finished", False], ["failed", False])
        assert states[1:] == [["finished", True]] * 2
        assert told in covered["message"][0]


def test_what_is_lacking_is_told_beside_the_numbers(sweep, finish):
    plan = sweep(GRID)
    for run in plan.runs:
        finish(plan, run, {"val": 50.0, "shapes-a": 40.0})
    frame, covered = gather(plan)
    assert frame["run"].nunique() == 3
    assert set(covered["state"]) == {"finished"}
    assert covered["measured"].all()
    lacking = "shapes-r, shapes-v2, shapes-stylized, shapes-sketch"
    assert all(message.endswith(lacking) for message in covered["message"])


ALL = ("val", "shapes-a", "shapes-r", "shapes-v2", "shapes-stylized", "shapes-sketch")


def test_a_run_that_has_not_said_that_it_ended_is_looked_at_again(sweep, finish_all):
    plan = sweep(GRID)
    finish_all(plan, ALL)
    folder = plan.run_folder(plan.runs[0])
    folder.metrics_file.touch()
    folder.write_status("running")  # it was killed after it had written its results
    frame, covered = gather(plan)
    assert list(covered["state"]) == ["finished"] * 3
    assert frame["run"].nunique() == 3
    with folder.lock():
        frame, covered = gather(plan)
    assert list(covered["state"]) == ["running", "finished", "finished"]
    assert frame["run"].nunique() == 2


def log(plan, run, lines, end=""):
    folder = plan.run_folder(run)
    folder.create(run.config)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder.metrics_file.write_text(text + end)


def line(step, **numbers):
    named = {name.replace("__", "/"): value for name, value in numbers.items()}
    return {"step": step, "epoch": step / 10, "time": 1e9 + step, **named}


def test_curves_are_the_logged_points(sweep):
    plan = sweep(GRID, "seeds: 2")
    first, second, *_ = plan.runs
    broken = '{"step": 30, "epoch": 3.0, "val/top1": 9'
    lines = [
        line(0, health__patch_rank=5.0), line(10, train__loss=2.0, val__top1=20),
        line(20, train__loss=1.0), line(20, val__top1=30.5), line(20, val__top1=31.5, val__nll=1.0),
    ]  # fmt: skip
    log(plan, first, lines, broken)
    log(plan, second, [line(10, val__top1=1.0)], "no JSON, val/top1\n")
    for _ in range(2):
        frame = curves(plan, ["val/top1", "health/patch_rank", "unknown"])
        assert list(frame.columns) == ["run", "cell", "seed", "step", "epoch", "name", "value"]
        rows = list(frame.itertuples(index=False, name=None))
        head = (first.id, first.cell, 0)
        assert rows == [
            (*head, 0, 0.0, "health/patch_rank", 5.0), (*head, 10, 1.0, "val/top1", 20.0),
            (*head, 20, 2.0, "val/top1", 31.5),
            (second.id, second.cell, 0, 10, 1.0, "val/top1", 1.0),
        ]  # fmt: skip
        assert set(curves(plan, ["val/top1"], [second.cell])["run"]) == {second.id}
    log(plan, second, [line(10, val__top1=2.0)])
    assert curves(plan, ["val/top1"], [second.cell])["value"].tolist() == [2.0]
    assert curves(plan, ["val/top1"])["value"].tolist() == [20.0, 31.5, 2.0]
    assert curves(plan, []).empty


def test_costs_are_medians_of_what_was_logged(sweep):
    plan = sweep(GRID, "seeds: 2", "resources: {gpus: 2, nodes: 3, pack: 4}")
    done, running, silent, *_ = plan.runs
    speeds, waits = [10.0, 200.0, 256.0, 128.5], [900.0, 5.5, 6.0, 1e-05]
    lines = [
        line(
            s,
            train__images_per_second=v,
            train__peak_memory_mib=100.0 + s,
            time__data_ms=w,
            system__gpu_0_power_usage_watts=200.0 + 100 * s,
        )
        for s, v, w in zip(range(4), speeds, waits, strict=True)
    ]
    log(plan, done, [*lines, line(4, val__top1=50.0)], json.dumps(line(5, time__data_ms=1e9)))
    log(plan, running, [line(1, train__images_per_second=100, time__contrastive_ms=3.5)])
    log(plan, silent, [line(0, health__patch_rank=5.0)])
    plan.run_folder(done).write_status("finished", spent=7200.0)
    write_json(plan.run_folder(done).results_file, {"train_seconds": 1800.5, "benchmarks": {}})
    for _ in range(2):
        table = costs(plan)
        assert list(table["run"]) == [done.id, running.id]
        assert list(table["seed"]) == [0, 0]
        one, other = table.iloc[0], table.iloc[1]
        assert one["gpu_hours"] == 2.0 * 2 * 3 / 4
        assert one["kwh"] == 3.0 * 350 / 1000  # the mean of 200, 300, 400 and 500 W
        assert one["train_seconds"] == 1800.5
        assert one["images_per_second"] == np.median(speeds)
        assert one["step_ms"] == 1000 * done.config.batch_size / np.median(speeds)
        assert one["data_ms"] == np.median(waits)
        assert one["peak_memory_mib"] == 103.0
        assert other["contrastive_ms"] == 3.5
        unknown = ["gpu_hours", "kwh", "train_seconds", "peak_memory_mib", "data_ms"]
        assert other[unknown].isna().all()
        assert list(table.columns)[:4] == ["run", "cell", "seed", "gpu_hours"]
    assert list(table.columns)[-2:] == ["data_ms", "contrastive_ms"]


def test_an_hour_without_a_gpu_counts_one(sweep):
    lines = [line(1, train__images_per_second=100.0)]
    for gpus, fixed in ((2, ", device: cpu"), (0, "")):
        plan = sweep(f"resources: {{gpus: {gpus}, nodes: 2, pack: 4}}", fixed=fixed)
        for run in plan.runs:
            log(plan, run, lines)
            plan.run_folder(run).write_status("cancelled", spent=1800.0)
        assert set(costs(plan)["gpu_hours"]) == {0.5}


def test_no_costs_and_curves_where_nothing_was_trained(sweep):
    plan = sweep(GRID)
    assert costs(plan).empty
    assert "gpu_hours" in costs(plan)
    assert curves(plan, ["val/top1"]).empty


def test_infinite_is_not_a_number_and_true_is_none(sweep, finish_all):
    plan = sweep("seeds: 3")
    finish_all(plan)
    for run, value in zip(plan.runs, (1e999, True, {"n": 1e999}), strict=True):
        results = read_json(plan.run_folder(run).results_file)
        numbers = results["benchmarks"]["val"]
        numbers |= value if isinstance(value, dict) else {"top1": value}
        write_json(plan.run_folder(run).results_file, results)
    frame, coverage = gather(plan)
    (found,) = frame.loc[(frame["benchmark"] == "val") & (frame["metric"] == "top1"), "value"]
    assert math.isnan(found)
    told = list(coverage["message"])
    assert ["is damaged" in text for text in told] == [False, True, True]
    assert "True is not a number" in told[1]
    assert "n must be a whole number of images" in told[2]
