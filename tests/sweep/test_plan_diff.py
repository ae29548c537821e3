"""The effect of a changed sweep file, by the ids of cells and runs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densevit.config.run_config import RunConfig
from densevit.sweep import plan_diff as module
from densevit.sweep.plan import make_plan
from densevit.sweep.plan_diff import diff, diff_lines, diff_record

BEFORE = "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}\nseeds: 2\n"
AFTER = "name: a\ngrid: {cl_mode: [none, dense], temperature: [0.2, 0.5, 0.7]}\nseeds: 2\n"


def plan_of(tmp_path, text, name="sweep.yaml"):
    (tmp_path / name).write_text(text)
    return make_plan(tmp_path / name, tmp_path / "outputs")


def found(tmp_path, before, after):
    return diff(plan_of(tmp_path, before, "before.yaml"), plan_of(tmp_path, after, "after.yaml"))


def finish(plan, *runs):
    for run in runs:
        plan.run_folder(run).path.mkdir(parents=True)
        plan.run_folder(run).write_status("finished")


def test_cells_and_runs_are_new_reused_or_orphaned(tmp_path):
    changed = found(tmp_path, BEFORE, AFTER)
    values = {
        name: [(runs[0].config.cl_mode, runs[0].config.temperature) for runs in part.cells.values()]
        for name, part in (("new", changed.new), ("orphaned", changed.orphaned))
    }
    assert values == {"new": [("dense", 0.5), ("dense", 0.7)], "orphaned": [("dense", 0.1)]}
    assert [len(part.runs) for part in (changed.new, changed.reused, changed.orphaned)] == [4, 4, 2]
    assert len(changed.reused.cells) == 2
    assert changed.axes == ("cl_mode", "temperature")
    assert not (tmp_path / "outputs").exists(), "looking creates nothing"


_grids = st.fixed_dictionaries(
    {
        "grid": st.fixed_dictionaries(
            {
                "cl_mode": st.lists(
                    st.sampled_from(["none", "global", "dense"]), min_size=1, unique=True
                ),
                "temperature": st.lists(st.sampled_from([0.1, 0.2]), min_size=1, unique=True),
            }
        ),
        "seeds": st.lists(st.integers(0, 2), min_size=1, unique=True),
    }
)


@given(_grids, _grids)
def test_the_parts_hold_everything_once(tmp_path_factory, before, after):
    folder = tmp_path_factory.mktemp("d")
    old, new = (
        plan_of(folder, json.dumps({"name": "a", **content}), f"{number}.yaml")
        for number, content in enumerate((before, after))
    )
    changed = diff(old, new)
    ids = [[run.id for run in p.runs] for p in (changed.new, changed.reused, changed.orphaned)]
    assert sorted(ids[0] + ids[1]) == sorted(run.id for run in new.runs)
    assert sorted(ids[1] + ids[2]) == sorted(run.id for run in old.runs)
    cells = [set(part.cells) for part in (changed.new, changed.reused, changed.orphaned)]
    assert cells[0] | cells[1] == {run.cell for run in new.runs}
    assert cells[1] | cells[2] == {run.cell for run in old.runs}
    assert sum(map(len, cells)) == len(set().union(*cells))
    back = diff(new, old)
    assert [run.id for run in back.new.runs] == ids[2]
    assert list(back.orphaned.cells) == list(changed.new.cells)


def test_the_lines_say_what_is_finished_and_that_orphans_are_kept(tmp_path):
    changed = found(tmp_path, BEFORE, AFTER)
    (lost,), (first, _) = changed.orphaned.cells.values(), changed.new.cells.values()
    finish(changed.orphaned.plan, lost[0])
    finish(changed.new.plan, *first)  # by another sweep
    assert diff_lines(changed) == [
        "+2 cells (4 runs), 2 reused (4 runs), 1 orphaned (2 runs)",
        f"+ {first[0].cell}  dense · 0.5: 2 of 2 runs finished",
        f"+ {list(changed.new.cells)[1]}  dense · 0.7: 0 of 2 runs finished",
        f"- {lost[0].cell}  dense · 0.1: 1 of 2 runs finished, not {lost[1].id}",
        "orphaned runs stay on disk and go on if they are running; "
        f"densevit-sweep cancel {tmp_path / 'after.yaml'} RUN... stops them",
    ]


def test_a_plan_that_did_not_change_says_so_in_one_line(tmp_path):
    assert diff_lines(found(tmp_path, BEFORE, BEFORE)) == [
        "+0 cells (0 runs), 3 reused (6 runs), 0 orphaned (0 runs)"
    ]


def test_seeds_change_runs_and_no_cells(tmp_path):
    lines = diff_lines(found(tmp_path, BEFORE, BEFORE.replace("seeds: 2", "seeds: [1, 4, 5]")))
    assert lines[0] == "+0 cells (6 runs), 3 reused (3 runs), 0 orphaned (3 runs)"
    assert lines[1] == "+ seeds 4, 5 of 3 reused cells: 0 of 6 runs finished"
    assert lines[2].startswith("- seed 0 of 3 reused cells: 0 of 3 runs finished, not ")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("before", "after", "labels"),
    [
        # An axis of the old plan only, and a field that is no axis of either.
        ("grid: {epochs: [50, 60]}", "grid: {epochs: [70]}", ["70", "50", "60"]),
        ("fixed: {epochs: 50}", "fixed: {epochs: 70}", ["70", "50"]),
        ("grid: {epochs: [50]}", "grid: {epochs: [50, 60]}", ["60"]),
        ("fixed: {model_kwargs: {img_size: 128}}", "fixed: {}", ["{}", "img_size=128"]),
    ],
)
def test_labels_tell_the_cells_of_both_plans_apart(tmp_path, before, after, labels):
    changed = found(tmp_path, f"name: a\n{before}\n", f"name: a\n{after}\n")
    lines = [line for line in diff_lines(changed) if line[:2] in ("+ ", "- ")]
    assert [line.split("  ")[1].split(":")[0] for line in lines] == labels


def test_long_lists_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_CELLS", 3)
    many = "name: a\ngrid: {epochs: [%s]}\nseeds: 8\n"
    changed = found(tmp_path, many % "50", many % "60, 70, 80, 90, 95")
    lines = diff_lines(changed)
    assert lines[0] == "+5 cells (40 runs), 0 reused (0 runs), 1 orphaned (8 runs)"
    assert [line[:2] for line in lines[1:]] == ["+ "] * 4 + ["- ", "or"]
    assert lines[4] == "+ and 2 more (16 runs)"
    assert lines[5].endswith(" and 2 more"), "of the ids that are not finished"


def test_the_record_is_json_and_whole(tmp_path):
    changed = found(tmp_path, BEFORE, AFTER.replace("seeds: 2", "seeds: 3"))
    finish(changed.reused.plan, changed.reused.runs[0])
    record = json.loads(json.dumps(diff_record(changed)))
    assert list(record) == ["new", "reused", "orphaned"]
    assert [(len(p["cells"]), len(p["runs"])) for p in record.values()] == [(2, 8), (2, 4), (1, 2)]
    none = record["reused"]["cells"][0]
    assert (none["label"], none["finished"], len(none["runs"])) == ("none", 1, 3)
    assert none["cell"] == changed.reused.runs[0].cell
    assert record["orphaned"]["cells"][0]["runs"] == record["orphaned"]["runs"]


def test_a_field_under_fixed_that_is_execution_changes_nothing(tmp_path):
    changed = found(tmp_path, "name: a\n", "name: b\nfixed: {workers: 0}\n")
    assert (changed.new.runs, changed.orphaned.runs) == ((), ())
    assert [run.config for run in changed.reused.runs] == [RunConfig(workers=0)]
