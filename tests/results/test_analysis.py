"""What a report computes itself: gaps to clean accuracy, the cells worth showing, last values."""

import random
from pathlib import Path

import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from densevit.results import analysis
from densevit.results.report.summary import conclusions, question
from densevit.results.stats.reference_models import read_references
from densevit.results.tables.pivot import pivot

MEASURED = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]


def frame(*rows):
    return pd.DataFrame(
        [(run, run[0], 0, "finished", benchmark, metric, value, 100)
         for run, benchmark, metric, value in rows],
        columns=MEASURED,
    )  # fmt: skip


def test_the_gap_to_clean_accuracy():
    """The same class frequencies if known, else the clean test set; probes have none."""
    numbers = frame(
        ("a", "val", "top1", 60.0), ("a", "x", "top1", 40.0), ("a", "y", "top1", 30.0),
        ("a", "y", "matched_clean", 70.0), ("a", "knn", "top1", 55.0),
        ("b", "x", "top1", 40.0),
    )  # fmt: skip
    found = analysis.gaps(numbers).set_index(["run", "benchmark"])["value"]
    assert found["a", "x"] == pytest.approx(-20)
    assert found["a", "y"] == pytest.approx(-40)
    assert ("a", "knn") not in found
    assert ("a", "val") not in found
    assert pd.isna(found["b", "x"])


def test_the_real_clean_test_set_goes_before_val():
    numbers = frame(
        ("a", "val", "top1", 60.0), ("a", "imagenet", "top1", 50.0), ("a", "x", "top1", 40.0)
    )  # fmt: skip
    assert list(analysis.gaps(numbers)["value"]) == [-10.0]


COLUMNS = ["cell", "baseline", "benchmark", "difference", "verdict"]


def test_of_many_cells_the_telling_ones_are_shown():
    ids = [f"c{i:02}" for i in range(30)]
    cells = pd.DataFrame({"cell": ids, "label": ids})
    numbers = pd.DataFrame(
        [(c, c, 0, "finished", "val", "top1", 50.0 + i, 100) for i, c in enumerate(ids)],
        columns=MEASURED,
    )
    base = dict.fromkeys(ids[1:], "c00")
    rows = [("c03", "c00", "val", 9.0, "established"), ("c05", "c00", "val", 20.0, "too noisy")]
    differences = pd.DataFrame(rows, columns=COLUMNS)
    shown = analysis.cells_to_show(cells, numbers, base, differences, 8)
    assert len(shown) <= 8
    assert shown == sorted(shown)
    assert {"c00", "c03", "c29", "c28", "c27", "c26"} <= set(shown)
    assert analysis.cells_to_show(cells, numbers, base, differences, 30) == ids


def test_nothing_measured_is_still_a_choice():
    ids = [f"c{i:02}" for i in range(30)]
    cells = pd.DataFrame({"cell": ids, "label": ids})
    empty = pd.DataFrame(columns=COLUMNS)
    shown = analysis.cells_to_show(cells, pd.DataFrame(columns=MEASURED), {}, empty, 8)
    assert shown == ids[:8]


def test_the_last_value_of_each_run():
    drawn = pd.DataFrame(
        [("a", "h", 1, 0.0), ("a", "h", 5, 1.0), ("b", "h", 3, 0.5), ("a", "other", 9, 7.0)],
        columns=["run", "name", "step", "value"],
    )
    last = analysis.last_values(drawn, "h").set_index("run")["value"]
    assert dict(last) == {"a": 1.0, "b": 0.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Question: does it\n# help?\n# Size: 3 runs\nname: a\n", "Does it help?"),
        ("# Question: one\n#\n# more\nname: a\n", "One"),
        ("# Question: a: b c\n#   densevit-sweep x\nname: a\n", "A: b c densevit-sweep x"),
        ("# Another comment\n# Question: two\nname: a\n", "Two"),
        ("name: a\n# Question: late\n", ""),
        ("# no question\nname: a\n", ""),
    ],
)
def test_the_question_of_a_sweep_file(tmp_path, text, expected):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert question(file) == expected


def test_null_on_an_axis_is_a_level_and_not_an_axis_that_does_not_apply(sweep, finish, tmp_path):
    (tmp_path / "w.pt").touch()
    plan = sweep(
        "grid: {cl_mode: [none, dense], init_checkpoint: [null, w.pt]}", "seeds: 3",
        "baseline: {cl_mode: none}",
    )  # fmt: skip
    gains = {("none", None): 0, ("none", "w.pt"): 20, ("dense", None): 3, ("dense", "w.pt"): 13}
    for run in plan.runs:
        start = run.config.init_checkpoint and Path(run.config.init_checkpoint).name
        gain = gains[run.config.cl_mode, start]
        finish(plan, run, {"val": 50 + gain + run.seed + 0.1 * (gain * run.seed % 3)})
    found = analysis.analyze(plan, read_references(), 1.0, [], 40)
    differences = found.differences.set_index("cell")["difference"]
    assert sorted(round(value) for value in differences) == [-7, 3]
    effects = found.marginals.set_index("axis")
    assert (effects.loc["cl_mode", "contexts"], effects.loc["init_checkpoint", "contexts"]) == (
        2,
        2,
    )
    assert effects.loc["cl_mode", "difference"] == pytest.approx(-2, abs=0.3)
    assert effects.loc["init_checkpoint", "difference"] == pytest.approx(15, abs=0.3)
    corrected = multipletests(effects["p"], method="holm")[1]  # of both axes together
    assert list(effects["p_holm"]) == pytest.approx(list(corrected))
    assert {"cl_mode", "init_checkpoint"} <= set(found.shares["source"])
    assert "null" in found.labels[plan.grid.cells[0].cell]
    table = pivot(plan, found.frame, ["init_checkpoint"], ["cl_mode"])
    assert table.rows[0][0] == "null"
    assert len(found.flips) > 0


def test_what_has_no_line_of_references_is_compared_by_its_gap_to_clean_accuracy(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 6", "baseline: {cl_mode: none}")
    noise = random.Random(3)
    for run in plan.runs:
        gain = 5.0 if run.config.cl_mode == "dense" else 0.0
        numbers = {"val": 60, "imagenet-v2": 50 + gain, "mine": 30 + gain}
        finish(plan, run, {k: v + noise.gauss(0, 0.2) for k, v in numbers.items()})
    found = analysis.analyze(plan, read_references(), 1.0, [], 40)
    assert found.lined == {"imagenet-v2"}
    beyond = found.beyond.set_index("benchmark")["difference"]
    assert set(beyond.index) == {"imagenet-v2", "mine"}
    assert list(beyond) == pytest.approx([5, 5], abs=0.5)
    assert list(found.beyond["n"]) == [6, 6]  # seeds, each of which counts once
    lines = conclusions(found)
    by_line = [line for line in lines if "beyond what clean accuracy predicts" in line]
    by_gap = [line for line in lines if "beyond the change on clean data" in line]
    assert [("imagenet-v2" in line, "mine" in line) for line in by_line] == [(True, False)]
    assert [("imagenet-v2" in line, "mine" in line) for line in by_gap] == [(False, True)]
