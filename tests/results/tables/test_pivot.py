import csv
import io
import math
import statistics

import pandas as pd
import pytest

from densevit.results.collect.numbers import collect
from densevit.results.tables.pivot import pivot
from densevit.results.tables.table import to_csv, to_markdown
from densevit.utils.errors import UserError

GRID = [
    "grid: {cl_mode: [none, dense], temperature: [0.2, 0.1], queue_size: [64, 128]}",
    "seeds: 2",
]


def by_hand(plan, numbers, benchmark="val", **where):
    """Return the values of the runs with these settings, by seed."""
    found = {}
    for run in plan.runs:
        if all(getattr(run.config, name) == value for name, value in where.items()):
            found.setdefault(run.seed, []).append(numbers[run.id][benchmark])
    return found


def text(values):
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def test_two_axes_in_the_order_of_the_file(sweep, finish_all):
    plan = sweep(*GRID)
    numbers = finish_all(plan)
    frame = collect(plan)
    frame = frame[frame["benchmark"] == "val"]
    sheet = pivot(plan, frame, ["temperature"], ["queue_size"])
    assert sheet.head == ["temperature", "queue_size –", "queue_size 64", "queue_size 128"]
    assert [row[0] for row in sheet.rows] == ["–", "0.2", "0.1"]
    assert sheet.rows[0][2:] == ["–", "–"]  # none has no queue
    for row, temperature in zip(sheet.rows[1:], (0.2, 0.1), strict=True):
        assert row[1] == "–"
        for entry, size in zip(row[2:], (64, 128), strict=True):
            found = by_hand(
                plan, numbers, cl_mode="dense", temperature=temperature, queue_size=size
            )
            assert entry == text([v for values in found.values() for v in values])
    assert "Averaged over cl_mode: 1 cell per entry." in sheet.note
    assert "–: does not apply" in sheet.note
    read = list(csv.DictReader(io.StringIO(to_csv(sheet))))
    found = by_hand(plan, numbers, cl_mode="dense", temperature=0.2, queue_size=64)
    assert float(read[1]["queue_size 64"]) == pytest.approx(
        statistics.mean(v for values in found.values() for v in values), rel=1e-12
    )
    assert read[1]["queue_size –"] == ""


def test_what_is_averaged_over_is_told(sweep, finish_all):
    plan = sweep(*GRID)
    numbers = finish_all(plan)
    sheet = pivot(plan, collect(plan), ["cl_mode"], ["benchmark"])
    assert sheet.head == ["cl_mode", "val", "shapes-a", "shapes-sketch"]
    found = by_hand(plan, numbers, "shapes-a", cl_mode="dense")
    assert [len(values) for values in found.values()] == [4, 4]
    # per seed the mean over four cells; the spread is that of these means
    assert sheet.rows[1][2] == text([statistics.mean(values) for values in found.values()])
    assert "Averaged over temperature, queue_size: 1 to 4 cells per entry." in sheet.note
    assert "different settings" in sheet.note


def test_test_sets_are_never_averaged(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2")
    numbers = finish_all(plan, ["b", "val"])
    sheet = pivot(plan, collect(plan), [], ["cl_mode"])
    assert sheet.head == ["cl_mode none", "cl_mode dense"]
    assert sheet.rows[0][0] == text([numbers[run.id]["val"] for run in plan.runs[::2]])
    assert sheet.note == "On val; name benchmark for all test sets."


def test_seeds_and_metrics_are_axes(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: [3, 1]")
    numbers = finish_all(plan, ["val"])
    frame = collect(plan)
    sheet = pivot(plan, frame, ["cl_mode"], ["seed"])
    assert sheet.head == ["cl_mode", "seed 3", "seed 1"]
    assert sheet.rows[0][1:] == [f"{numbers[run.id]['val']:.1f}" for run in plan.runs[::2]]
    assert sheet.note == ""
    sheet = pivot(plan, frame, ["metric"], ["cl_mode"])
    assert [row[0] for row in sheet.rows] == ["top1", "top5", "nll"]
    assert sheet.rows[2][1] == "1.000 ± 0.000"
    assert pivot(plan, frame, ["cl_mode"], [], "nll").rows[0] == ["none", "1.000 ± 0.000"]


def test_what_is_missing_and_what_is_partly_there(sweep, finish):
    plan = sweep("grid: {cl_mode: [global, dense], temperature: [0.1, 0.2]}", "seeds: 2")
    there = {("global", 0.1, 0): 40.0, ("global", 0.1, 1): 44.0, ("global", 0.2, 0): 60.0}
    for run in plan.runs:
        key = (run.config.cl_mode, run.config.temperature, run.seed)
        if key in there:
            finish(plan, run, {"val": there[key]})
    frame = collect(plan)
    sheet = pivot(plan, frame, ["cl_mode"], ["temperature"])
    assert sheet.rows == [
        ["global", "42.0 ± 2.8", "60.0 (1 of 2)"],
        ["dense", "missing", "missing"],
    ]
    # cells have equal weight, however many seeds they have; no spread if seeds differ
    assert pivot(plan, frame, ["cl_mode"], ["benchmark"]).rows == [
        ["global", "51.0 (3 of 4)"],
        ["dense", "missing"],
    ]
    assert "(1 of 2): the mean of 1 result" in sheet.note
    assert to_csv(sheet).splitlines()[2] == "dense,,"


def test_nothing_finished_and_nan(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2")
    sheet = pivot(plan, collect(plan), ["cl_mode"], ["benchmark"])
    assert sheet.head == ["cl_mode", "val"]
    assert sheet.rows == [["none", "missing"], ["dense", "missing"]]
    for run in plan.runs:
        finish(plan, run, {"val": 50.0}, nll=math.nan if run.seed else 1.0)
    assert pivot(plan, collect(plan), ["cl_mode"], ["benchmark"], "nll").rows[0][1] == "nan"


def test_values_that_read_alike_stay_apart(sweep, finish_all):
    plan = sweep("grid: {temperature: [0.10000001, 0.10000002]}", "seeds: 1")
    numbers = finish_all(plan, ["val"])
    rows = pivot(plan, collect(plan), ["temperature"], ["benchmark"]).rows
    assert rows == [
        [repr(run.config.temperature), f"{numbers[run.id]['val']:.1f}"] for run in plan.runs
    ]


def test_a_mapping_is_an_axis(sweep, finish_all):
    plan = sweep("grid: {model_kwargs: [{img_size: 32}, {img_size: 64}]}")
    finish_all(plan, ["val"])
    sheet = pivot(plan, collect(plan), ["model_kwargs"], ["benchmark"])
    assert [row[0] for row in sheet.rows] == [
        "img_size=32 patch_size=4",
        "img_size=64 patch_size=4",
    ]
    assert '"{""img_size"": 64, ""patch_size"": 4}"' in to_csv(sheet)


@pytest.mark.parametrize(
    ("rows", "cols", "metric", "told"),
    [
        (["temprature"], [], "top1", r"--rows temprature: no axis .*did you mean 'temperature'"),
        (["cl_mode"], ["bench"], "top1", r"--cols bench: .*did you mean 'benchmark'"),
        (["momentum"], [], "top1", r"--rows momentum: is the same in every cell"),
        (["cl_mode"], ["cl_mode"], "top1", r"--cols cl_mode: is named twice"),
        ([], [], "top1", r"--rows, --cols: name at least one axis"),
        (["cl_mode"], [], "topp1", r"--metric topp1: .*'top1'"),
    ],
)
def test_mistakes_point_to_the_nearest_name(sweep, finish_all, rows, cols, metric, told):
    plan = sweep(*GRID)
    finish_all(plan, ["val"])
    with pytest.raises(UserError, match=told) as raised:
        pivot(plan, collect(plan), rows, cols, metric)
    assert "\n" not in str(raised.value)


def test_every_entry_against_pandas(sweep, finish_all):
    plan = sweep(*GRID)
    finish_all(plan)
    frame = collect(plan)
    settings = pd.DataFrame(
        [(run.id, run.config.cl_mode, run.config.temperature) for run in plan.runs],
        columns=["run", "cl_mode", "temperature"],
    )
    wide = frame[frame["metric"] == "top1"].merge(settings, on="run")
    wide = wide[wide["cl_mode"] == "dense"].pivot_table("value", "temperature", "benchmark")
    sheet = pivot(plan, frame, ["cl_mode", "temperature"], ["benchmark"])
    data = sheet.data[sheet.data["cl_mode"] == "dense"].set_index("temperature")
    for name in wide:
        for temperature in wide.index:
            assert data.at[temperature, name] == pytest.approx(wide.at[temperature, name])
    assert to_markdown(sheet).count("\n| dense ") == 2
