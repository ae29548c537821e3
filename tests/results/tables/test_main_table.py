import csv
import io
import math
import random
import re
import statistics

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.stats import binom

from densevit.results.collect.cells import cells_frame
from densevit.results.collect.numbers import MEASURED, collect
from densevit.results.tables.best_cells import best_marks
from densevit.results.tables.costs import cost_table
from densevit.results.tables.differences import difference_table
from densevit.results.tables.effects import marginal_table
from densevit.results.tables.format import check_metric, short
from densevit.results.tables.main_table import cell_table, cell_table_text, to_text
from densevit.results.tables.table import to_csv as csv_of
from densevit.results.tables.table import to_markdown as markdown
from densevit.results.tables.table import to_rich
from densevit.utils.errors import UserError

TRIED = 30
THREE = ["grid: {cl_mode: [none, global, dense]}", "seeds: 3"]


def table_of(plan, metric="top1"):
    return cell_table(plan, collect(plan), metric)


def fields(markdown_line):
    """Return the cells of a line of a Markdown table."""
    return [f.strip() for f in re.split(r"(?<!\\)\|", markdown_line.strip())[1:-1]]


def test_numbers_equal_an_independent_calculation(sweep, finish_all):
    plan = sweep(*THREE)
    numbers = finish_all(plan)
    rows = table_of(plan).data.to_dict("records")
    assert [row["cell"] for row in rows] == [run.cell for run in plan.grid.cells]
    for row in rows:
        ids = [run.id for run in plan.runs if run.cell == row["cell"]]
        for name in ("val", "shapes-a", "shapes-sketch"):
            values = [numbers[i][name] for i in ids]
            assert row[f"{name}_mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert row[f"{name}_std"] == pytest.approx(statistics.stdev(values), rel=1e-12)
            assert row[f"{name}_n"] == 3


def test_partly_filled_failed_and_missing_cells(sweep, finish):
    plan = sweep(*THREE)
    none, glob, dense = plan.grid.cells
    finish(plan, none, {"val": 71.25, "b": 40.0})
    second = next(run for run in plan.runs if run.cell == none.cell and run.seed == 1)
    finish(plan, second, {"val": 70.75})  # b was added after this one had been evaluated
    finish(plan, glob, {"val": 60.0})
    plan.run_folder(dense).create(dense.config)
    plan.run_folder(dense).write_status("failed")
    head, rows = to_text(table_of(plan))
    assert head == ["cl_mode", "seeds", "val", "b"]
    assert rows == [
        ["none", "2/3", "71.0 ± 0.4", "40.0 (n=1)"],
        ["global", "1/3", "60.0", "missing"],
        ["dense", "0/3", "missing", "missing"],
    ]


def test_an_axis_that_does_not_apply(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, dense], queue_size: [4096, 65536]}")
    finish_all(plan, ["val"])
    table = table_of(plan)
    _, rows = to_text(table)
    assert [row[:2] for row in rows] == [["none", "–"], ["dense", "4096"], ["dense", "65536"]]
    read = list(csv.DictReader(io.StringIO(csv_of(cell_table_text(table)))))
    assert [row["queue_size"] for row in read] == ["", "4096", "65536"]


def test_one_cell_has_a_label(sweep, finish_all):
    plan = sweep("seeds: 2")
    finish_all(plan, ["val"])
    head, rows = to_text(table_of(plan))
    assert head[0] == "cell"
    assert rows[0][:2] == ["dense", "2/2"]


def test_nothing_finished_shows_every_cell_as_missing(sweep):
    head, rows = to_text(table_of(sweep(*THREE)))
    assert head == ["cl_mode", "seeds", "val"]
    assert [row[1:] for row in rows] == [["0/3", "missing"]] * 3


def test_val_is_the_first_benchmark(sweep, finish_all):
    plan = sweep(*THREE)
    finish_all(plan, ["z", "val", "a"])
    assert table_of(plan).benchmarks == ("val", "z", "a")


def test_a_benchmark_of_some_of_its_classes_is_named_so(sweep, finish):
    """ImageNet-100 has some of the classes of ImageNet-A, and all of none of the others."""
    plan = sweep("grid: {cl_mode: [none]}", "seeds: 1")
    finish(plan, plan.runs[0], {"val": 80.0, "imagenet-a": 40.0, "imagenet-v2": 70.0, "mine": 1.0})
    frame = collect(plan)
    of_a = (frame["metric"] == "ways") & (frame["benchmark"] == "imagenet-a")
    frame.loc[of_a, "value"] = 34
    head, _ = to_text(cell_table(plan, frame))
    assert head[-4:] == ["val", "imagenet-a (34 of 200 classes)", "imagenet-v2", "mine"]


def test_csv_is_numeric_and_complete(sweep, finish, finish_all):
    plan = sweep("grid: {model_kwargs: [{img_size: 64}, {img_size: 128, patch_size: null}]}")
    finish(plan, plan.runs[0], {"val": 100 / 3})
    read = list(csv.DictReader(io.StringIO(csv_of(cell_table_text(table_of(plan))))))
    assert list(read[0]) == [
        "cell", "label", "model_kwargs", "seeds", "n", "val_mean", "val_std", "val_n",
    ]  # fmt: skip
    assert float(read[0]["val_mean"]) == 100 / 3
    assert (read[0]["val_std"], read[1]["val_mean"], read[1]["val_n"]) == ("", "", "0")
    assert read[1]["model_kwargs"] == '{"img_size": 128}'


def test_markdown_has_equal_columns_and_escapes_pipes(sweep, finish_all):
    plan = sweep(*THREE)
    finish_all(plan, ["val", "a|b", "c\\|d"])
    lines = markdown(cell_table_text(table_of(plan))).splitlines()
    assert len(lines) == 2 + 3
    assert {len(fields(line)) for line in lines} == {5}
    assert fields(lines[0])[3] == r"a\|b"
    assert fields(lines[1])[1:] == [f for f in fields(lines[1])[1:] if f.endswith("-:")]


def test_other_metrics(sweep, finish_all, finish):
    plan = sweep(*THREE)
    numbers = finish_all(plan, ["val"])
    values = [numbers[run.id]["val"] + 10 for run in plan.runs[::3]]
    top5 = table_of(plan, "top5").data["val_mean"][0]
    assert top5 == pytest.approx(statistics.mean(min(100, v) for v in values))
    assert to_text(table_of(plan, "nll"))[1][0][2] == "1.000 ± 0.000"


def test_a_seed_that_is_not_a_number_is_not_dropped(sweep, finish):
    plan = sweep("seeds: 3")
    for run, loss in zip(plan.runs, [1.0, math.nan, 2.0], strict=True):
        finish(plan, run, {"val": 50.0}, nll=loss)
    assert to_text(table_of(plan, "nll"))[1] == [["dense", "3/3", "nan"]]
    assert to_text(table_of(plan))[1] == [["dense", "3/3", "50.0 ± 0.0"]]


def test_the_terminal_shows_the_same_text(sweep, finish_all):
    plan = sweep(*THREE)
    finish_all(plan, ["val", "[red]odd"])
    table = table_of(plan)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(cell_table_text(table)))
    shown = console.export_text()
    head, rows = to_text(table)
    assert all(text in shown for row in [head, *rows] for text in row)


def test_intervals_only_where_they_are_asked_for(sweep, finish_all):
    plan = sweep(*THREE)
    numbers = finish_all(plan, ["val"])
    frame = collect(plan)
    table = cell_table(plan, frame, intervals=True)
    values = [numbers[run.id]["val"] for run in plan.runs[::3]]
    mean, half = statistics.mean(values), 4.302653 * statistics.stdev(values) / 3**0.5  # t, 2 df
    row = table.data.iloc[0]
    low, high = max(0.0, mean - half), min(100.0, mean + half)  # of a percentage
    assert (row["val_low"], row["val_high"]) == pytest.approx((low, high), rel=1e-6)
    shown = to_text(table)[1][0][2]
    assert shown == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    assert "± std" in cell_table_text(cell_table(plan, frame)).title
    assert "95 %" in cell_table_text(table).title


def test_one_seed_has_no_interval(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, dense]}")
    finish_all(plan, ["val"])
    _, rows = to_text(cell_table(plan, collect(plan), intervals=True))
    assert len(rows) == 2
    for row in rows:
        assert re.fullmatch(r"\d+\.\d", row[2])


def paired(plan, finish, effects, noise=0.2, seeds=0):
    """Finish a sweep whose cells differ by known effects, besides the effects that the seeds share."""
    chance = random.Random(seeds)
    common = {}
    for run in plan.runs:
        shift = common.setdefault(run.seed, chance.gauss(0, 3))
        effect = effects[run.config.cl_mode]
        finish(plan, run, {"val": 60 + shift + effect + chance.gauss(0, noise)})


def test_the_best_is_marked_where_it_is_told_apart(sweep, finish):
    """The pairs distinguish the cells, though seeds differ by much more than cells."""
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 5")
    paired(plan, finish, {"none": 0, "global": 0, "dense": 2})
    marks = best_marks(collect(plan), "top1")
    assert marks == {(plan.grid.cells[2].cell, "val"): "best"}
    sheet = cell_table_text(table_of(plan), marks)
    assert sheet.marks == {(2, 2): "best"}
    assert re.search(r"\*\*\d+\.\d ± \d\.\d\*\*", markdown(sheet))
    assert "better than every other cell of the column by an established" in sheet.note


def test_what_is_not_told_apart_from_the_best_is_tied(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 4")
    paired(plan, finish, {"none": -5, "global": 0, "dense": 0})
    _, glob, dense = (run.cell for run in plan.grid.cells)
    marks = best_marks(collect(plan), "top1")
    assert marks == {(glob, "val"): "tied", (dense, "val"): "tied"}
    assert "**" not in markdown(cell_table_text(table_of(plan), marks))
    assert (
        markdown(cell_table_text(table_of(plan), marks)).count("†") == 3
    )  # two cells and the note


def test_the_best_loss_is_the_lowest(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 3")
    for run in plan.runs:
        loss = (1.0 if run.config.cl_mode == "none" else 2.0) + run.seed / 100
        finish(plan, run, {"val": 50.0}, nll=loss + (run.seed % 2) / 1000)
    assert best_marks(collect(plan), "nll") == {(plan.grid.cells[0].cell, "val"): "best"}


def test_who_does_not_compete(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 3")
    for run in plan.runs:
        if run.config.cl_mode != "global":
            loss = math.nan if run.config.cl_mode == "none" and run.seed == 1 else 1.0
            finish(plan, run, {"val": 50.0}, nll=loss)
    frame = collect(plan)
    assert best_marks(frame, "nll") == {}  # one diverged, one is missing: nobody to win against
    assert best_marks(frame, "top1") == {}  # equal in every seed
    assert best_marks(frame[frame["seed"] == 0], "top1") == {}  # one seed tells nothing


@pytest.mark.parametrize(("metric", "sign"), [("top1", 1), ("nll", -1)])
def test_nobody_wins_against_a_cell_that_is_better_on_the_seeds_in_common(metric, sign):
    """`more` has the better mean because of two seeds that `few` lacks."""
    values = {"more": [50, 51, 52, 70, 70], "few": [53, 54.1, 55]}
    rows = [
        (f"{cell}{seed}", cell, seed, "finished", "val", metric, sign * value, 500)
        for cell, each in values.items() for seed, value in enumerate(each)
    ]  # fmt: skip
    assert best_marks(pd.DataFrame(rows, columns=MEASURED), metric) == {}


def test_a_cell_with_one_seed_has_no_mark_and_blocks_none():
    values = {"good": [50, 51, 52, 53], "bad": [40, 41, 42.1, 43], "new": [90]}
    rows = [
        (f"{cell}{seed}", cell, seed, "finished", "val", "top1", value, 500)
        for cell, each in values.items() for seed, value in enumerate(each)
    ]  # fmt: skip
    assert best_marks(pd.DataFrame(rows, columns=MEASURED)) == {("good", "val"): "best"}


def test_chance_alone_marks_few_sweeps():
    """All columns of a table together: in the long run at most 5 % of sweeps have a mark."""
    chance, marked = np.random.default_rng(0), 0
    for _ in range(TRIED):
        values = chance.normal(60, 1, (3, 4, 5))
        rows = [
            (f"r{c}{s}", f"c{c}", s, "finished", f"b{b}", "top1", values[c, b, s], 500)
            for c in range(3) for b in range(4) for s in range(5)
        ]  # fmt: skip
        marked += bool(best_marks(pd.DataFrame(rows, columns=MEASURED)))
    assert marked <= binom.ppf(0.99, TRIED, 0.05)


DIFFERENCES = ["cell", "baseline", "benchmark", "metric", "n", "difference", "std", "low", "high",
               "effect", "p", "p_holm", "verdict", "seeds_needed"]  # fmt: skip
CELLS = pd.DataFrame(
    {
        "cell": ["n", "g", "d"],
        "label": ["none", "global", "dense"],
        "cl_mode": ["none", "global", "dense"],
    }
)


def difference_row(cell, benchmark, n, difference, low, high, verdict):
    return [
        cell,
        "n",
        benchmark,
        "top1",
        n,
        difference,
        1.0,
        low,
        high,
        1.0,
        0.01,
        0.02,
        verdict,
        9.0,
    ]


def test_differences_as_a_table():
    frame = pd.DataFrame(
        [
            difference_row("d", "b", 5, 1.84, 0.9, 2.71, "established"),
            difference_row("d", "val", 5, -0.04, -0.3, 0.25, "equivalent"),
            difference_row("g", "val", 4, -0.5, -2.0, 1.0, "too noisy"),
            difference_row("g", "c", 1, 0.5, math.nan, math.nan, "single"),
            difference_row("d", "c", 5, math.nan, math.nan, math.nan, "undefined"),
        ],
        columns=DIFFERENCES,
    )
    sheet = difference_table(frame, CELLS, smallest_effect=0.5)
    assert sheet.head == ["cell", "against", "val", "b", "c"]
    assert sheet.rows == [
        ["global", "none", "−0.5 [−2.0, 1.0] ? (n=4)", "missing", "+0.5 (n=1)"],
        ["dense", "none", "+0.0 [−0.3, 0.2] ≈", "+1.8 [0.9, 2.7] ↑", "nan"],
    ]
    for word in (
        "↑ ↓: established (p < 0.05 after Holm's",
        "≈: equivalent",
        "±0.5",
        "no sign: one seed",
        "n = 5 common seeds",
    ):
        assert word in sheet.note
    read = list(csv.DictReader(io.StringIO(csv_of(sheet))))
    assert float(read[0]["difference"]) == 1.84
    assert (read[0]["label"], read[0]["baseline_label"]) == ("dense", "none")
    only = difference_table(frame[:1], CELLS, 1.0)
    assert "equivalent" not in only.note


def test_no_differences_is_a_table_without_rows():
    sheet = difference_table(pd.DataFrame(columns=DIFFERENCES), CELLS, 1.0)
    assert (sheet.head, sheet.rows) == (["cell", "against", "val"], [])


def test_marginal_effects_as_a_table():
    columns = [
        "axis",
        "level",
        "reference",
        "contexts",
        "n",
        "difference",
        "low",
        "high",
        "p",
        "p_holm",
    ]
    frame = pd.DataFrame(
        [
            ["queue_size", 4096, 65536, 3, 9, -0.25, -0.5, 0.0, 0.01, 0.0202],
            [
                "model_kwargs",
                {"img_size": 64},
                {},
                1,
                1,
                3.0,
                math.nan,
                math.nan,
                math.nan,
                math.nan,
            ],
            ["temperature", 0.1, 0.2, 3, 9, 2.0, 1.0, 3.0, 1e-6, 2e-6],
        ],
        columns=columns,
    )
    sheet = marginal_table(frame.assign(benchmark="val"))
    assert sheet.head[:3] == ["benchmark", "axis", "level"]
    assert sheet.rows == [
        ["val", "queue_size", "4096", "65536", "3", "9", "−0.2 [−0.5, 0.0]", "0.020"],
        ["val", "model_kwargs", "img_size=64", "{}", "1", "1", "+3.0", "–"],
        ["val", "temperature", "0.1", "0.2", "3", "9", "+2.0 [1.0, 3.0]", "<0.001"],
    ]


def test_costs_beside_accuracy(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 2")
    values = {"none": (40.0, 50.0), "global": (60.0,)}
    for run in plan.runs:
        for seed, value in enumerate(values.get(run.config.cl_mode, ())):
            if seed == run.seed:
                finish(plan, run, {"val": value})
    rows = [
        (run.id, run.cell, run.seed, 1.5 + run.seed, math.nan, 3000.0 if run.seed else math.nan, 2048.0)
        for run in plan.runs if run.config.cl_mode != "dense"
    ]  # fmt: skip
    columns = ["run", "cell", "seed", "gpu_hours", "kwh", "images_per_second",
               "peak_memory_mib"]  # fmt: skip
    costs = pd.DataFrame(rows, columns=columns)
    sheet = cost_table(costs, collect(plan), cells_frame(plan))
    assert sheet.head == ["cell", "runs", "GPU-hours", "images/s", "peak memory (GiB)", "val"]
    assert sheet.rows == [
        ["none", "2", "2.00", "3,000", "2.00", "45.0"],
        ["global", "2", "2.00", "3,000", "2.00", "60.0"],
        ["dense", "0", "–", "–", "–", "missing"],
    ]
    with_energy = cost_table(costs.assign(kwh=0.25), collect(plan), cells_frame(plan))
    assert with_energy.head[2:4] == ["GPU-hours", "kWh"]
    assert with_energy.rows[0][3] == "0.250"
    frame = collect(plan)
    frame.loc[frame["value"] == 40.0, "value"] = math.nan  # one seed has diverged
    diverged = cost_table(costs, frame, cells_frame(plan)).rows
    assert [row[-1] for row in diverged] == ["nan", "60.0", "missing"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (1.234, "1.23"),
        (99.94, "99.9"),
        (1234.4, "1,234"),
        (0.0, "0"),
        (math.nan, "–"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_an_unknown_metric_is_told():
    with pytest.raises(UserError, match=r"--metric topp1: .*did you mean 'top1'"):
        check_metric(pd.DataFrame({"metric": ["top1", "ways"]}), "topp1")
