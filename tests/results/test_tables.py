import csv
import io
import math
import re
import statistics

import pytest
from rich.console import Console

from densevit.results.collect import collect
from densevit.results.tables import cell_table, to_csv, to_markdown, to_rich, to_text

THREE = ["grid: {cl_mode: [none, global, dense]}", "seeds: 3"]


def table_of(plan, metric="top1"):
    return cell_table(plan, collect(plan), metric)


def fields(markdown_line):
    """The cells of a Markdown table's line."""
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
    finish(plan, second, {"val": 70.75})  # b was added when this one had been evaluated
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
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
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


def test_csv_is_numeric_and_complete(sweep, finish, finish_all):
    plan = sweep("grid: {model_kwargs: [{img_size: 32, patch_size: 8}, {img_size: 64}]}")
    finish(plan, plan.runs[0], {"val": 100 / 3})
    read = list(csv.DictReader(io.StringIO(to_csv(table_of(plan)))))
    assert list(read[0]) == [
        "cell", "label", "model_kwargs", "seeds", "n", "val_mean", "val_std", "val_n",
    ]  # fmt: skip
    assert float(read[0]["val_mean"]) == 100 / 3
    assert (read[0]["val_std"], read[1]["val_mean"], read[1]["val_n"]) == ("", "", "0")
    assert read[1]["model_kwargs"] == '{"img_size": 64}'


def test_markdown_has_equal_columns_and_escapes_pipes(sweep, finish_all):
    plan = sweep(*THREE)
    finish_all(plan, ["val", "a|b", "c\\|d"])
    lines = to_markdown(table_of(plan)).splitlines()
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
    assert to_text(table_of(plan, "nll"))[1] == [["dense", "3/3", "nan ± nan"]]
    assert to_text(table_of(plan))[1] == [["dense", "3/3", "50.0 ± 0.0"]]


def test_the_terminal_shows_the_same_text(sweep, finish_all):
    plan = sweep(*THREE)
    finish_all(plan, ["val", "[red]odd"])
    table = table_of(plan)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(table))
    shown = console.export_text()
    head, rows = to_text(table)
    assert all(text in shown for row in [head, *rows] for text in row)
