import json
import math
import statistics

import pytest

from densevit.results.collect.numbers import collect
from densevit.results.tables import frozen_changes, frozen_numbers
from densevit.utils.errors import UserError
from densevit.utils.files import read_json, write_json

TWO = ["grid: {cl_mode: [none, dense]}", "seeds: 2"]


@pytest.fixture
def kept(sweep, finish):
    """Return a sweep of which three of four runs are finished and frozen as `paper`."""
    plan = sweep(*TWO)
    for run in plan.runs[:3]:
        finish(plan, run, {"val": 50.0 + run.seed, "b": 30.0})
        write_json(plan.run_folder(run).provenance_file, {"starts": [{}, {"git_sha": "abc" * 13}]})
    return plan, frozen_numbers.freeze(plan, collect(plan), "paper")


def moved(plan, name="paper"):
    return frozen_changes.changes_since(plan, collect(plan), name)


def test_what_is_written_down(kept):
    plan, file = kept
    assert file == plan.folder / "frozen" / "paper.json"
    record = json.loads(file.read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert record["sweep"] == plan.name
    assert list(record["runs"]) == [run.id for run in plan.runs[:3]]
    for run in plan.runs[:3]:
        held = record["runs"][run.id]
        assert (held["cell"], held["seed"], held["git_sha"]) == (run.cell, run.seed, "abc" * 13)
        assert set(held["hashes"]) == {"val", "b"}
    numbers = {(n["label"], n["benchmark"], n["metric"]): n for n in record["numbers"]}
    found = numbers["none", "val", "top1"]
    assert (found["mean"], found["n"]) == (50.5, 2)
    assert found["std"] == pytest.approx(statistics.stdev([50, 51]))
    assert numbers["dense", "val", "top1"]["std"] is None
    assert record["frozen"].endswith("+00:00")
    assert frozen_numbers.frozen(plan) == ["paper"]


def test_nothing_moved(kept):
    found = moved(kept[0])
    assert found.changes == []
    assert found.table is None
    assert found.lines == [f"No number has changed since {read_json(kept[1])['frozen']}"]


def test_a_run_was_added(kept, finish):
    plan, _ = kept
    run = plan.runs[3]
    finish(plan, run, {"val": 60.0, "b": 30.0})
    found = moved(plan)
    assert found.lines[0] == f"{run.id} (dense, seed 1) was added"
    assert {move.cell for move in found.changes} == {run.cell}
    rows = {(row[1], row[2]): row[3:] for row in found.table.rows}
    assert rows["val", "top1"] == [f"{run.id} added", "50.0 (n=1)", "55.0 ± 7.1 (n=2)"]
    assert rows["b", "top1"][1:] == ["30.0 (n=1)", "30.0 ± 0.0 (n=2)"]
    assert "Also changed: ways." in found.table.note


@pytest.mark.parametrize("state", ["failed", "unreadable", "gone"])
def test_a_run_has_no_results_any_more(kept, state):
    plan, _ = kept
    run, folder = plan.runs[2], plan.run_folder(plan.runs[2])
    folder.results_file.unlink()
    if state == "failed":
        folder.write_status("failed", message="out of memory")
    elif state == "gone":
        folder.write_status("pending")
    else:
        folder.write_status("finished")
    found = moved(plan)
    told = {"failed": "is failed now: out of memory", "gone": "is pending now",
            "unreadable": "has no readable results"}[state]  # fmt: skip
    assert found.lines[0].startswith(f"{run.id} (none, seed 1) {told}")
    assert all(move.now.n == 1 for move in found.changes)
    assert {move.benchmark for move in found.changes} == {"val", "b"}


def test_results_of_a_run_changed_on_one_benchmark(kept):
    plan, _ = kept
    run, folder = plan.runs[0], plan.run_folder(plan.runs[0])
    results = read_json(folder.results_file)
    results["benchmarks"]["val"]["top1"] += 1e-6
    results["benchmarks"]["c"] = {"top1": 10.0, "n": 5}
    write_json(folder.results_file, results)
    write_json(folder.provenance_file, {"starts": [{"git_sha": "def" * 13}]})
    found = moved(plan)
    assert found.lines[:2] == [
        f"{run.id} (none, seed 0): results changed on val (code abcabcabca, now defdefdefd)",
        f"{run.id} (none, seed 0): results added on c (code abcabcabca, now defdefdefd)",
    ]
    assert [(move.benchmark, move.metric) for move in found.changes] == [
        ("val", "top1"),
        ("c", "top1"),
    ]
    assert found.changes[1].was is None
    assert found.table.rows[1][3:] == [f"{run.id} added", "–", "10.0 (n=1)"]


def test_a_result_that_changes_no_mean_is_told(kept):
    """Two runs that swap their results: the mean stays, but the results have changed."""
    plan, _ = kept
    files = [plan.run_folder(run).results_file for run in (plan.runs[0], plan.runs[2])]
    one, other = (read_json(file) for file in files)
    one["benchmarks"], other["benchmarks"] = other["benchmarks"], one["benchmarks"]
    write_json(files[0], one)
    write_json(files[1], other)
    found = moved(plan)
    assert found.changes == []
    assert [line.split(": ")[1] for line in found.lines[:2]] == ["results changed on val"] * 2


def test_a_sweep_that_became_smaller(kept, sweep):
    plan = sweep("grid: {cl_mode: [dense]}", "seeds: 2")
    found = moved(plan)
    gone = [line for line in found.lines if "is no longer part of the sweep" in line]
    assert len(gone) == 2
    assert {move.label for move in found.changes} == {"none"}
    assert all(move.now is None for move in found.changes)


def test_nan_is_the_same_as_nan(sweep, finish):
    plan = sweep(*TWO)
    for run in plan.runs:
        finish(plan, run, {"val": 50.0}, nll=math.nan if run.seed else 1.0)
    frozen_numbers.freeze(plan, collect(plan), "a")
    assert moved(plan, "a").changes == []


def test_a_name_is_taken_once(kept):
    plan, file = kept
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"--freeze paper: .*exists; choose another name"):
        frozen_numbers.freeze(plan, collect(plan), "paper")
    assert file.read_bytes() == before
    frozen_numbers.freeze(plan, collect(plan), "paper-2")
    assert set(frozen_numbers.frozen(plan)) == {"paper", "paper-2"}


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a\n", "x" * 101, "ü"])
def test_no_name_leaves_the_folder(kept, name):
    plan, _ = kept
    for call in (frozen_numbers.freeze, frozen_changes.changes_since):
        with pytest.raises(UserError, match=r"--freeze .* must be a name of letters") as raised:
            call(plan, collect(plan), name)
        assert "\n" not in str(raised.value)


def test_an_edited_or_damaged_file_is_told(kept):
    plan, file = kept
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record))  # written in another way, but the same
    assert moved(plan).changes == []
    record["numbers"][0]["mean"] += 0.1
    file.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"paper.json: was edited"):
        moved(plan)
    for text in ("{", "[]", "{}", '{"sha256": 1}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"paper.json: "):
            moved(plan)


def test_an_unknown_name_and_nothing_to_freeze(kept, sweep):
    plan, _ = kept
    with pytest.raises(UserError, match=r"papr.json: no such file; did you mean 'paper'"):
        moved(plan, "papr")
    empty = sweep("seeds: [7]", name="empty")
    with pytest.raises(UserError, match="no run of empty has results yet"):
        frozen_numbers.freeze(empty, collect(empty), "a")
    assert not (empty.folder / "frozen").exists()
