"""`densevit compare`: two cells of a sweep, or two runs."""

import math
import statistics

import numpy as np
import pytest

from densevit.cli.main import main
from densevit.config.identity import SCHEMA_VERSION
from densevit.evaluate.predictions import ClassPredictions, write_predictions
from densevit.results.compare.cells import compare_cells
from densevit.results.compare.find_cell import find_cell
from densevit.results.compare.runs import compare_runs
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError
from densevit.utils.files import write_json

SWEEP = """name: made_up
fixed: {dataset: shapes, model_kwargs: {img_size: 32, patch_size: 4}, epochs: 10}
grid: {cl_mode: [none, global, dense], temperature: [0.1, 0.2]}
seeds: 4
"""
PICTURES = 400


@pytest.fixture
def plan(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    return make_plan(file, tmp_path / "outputs")


def finish(plan, run, benchmarks, pictures=10_000):
    folder = plan.run_folder(run)
    ids = folder.create(run.config)
    numbers = {b: {"top1": v, "nll": v / 50, "n": pictures} for b, v in benchmarks.items()}
    record = {"run": ids.run, "cell": ids.cell, "seed": run.seed, "benchmarks": numbers}
    write_json(folder.results_file, {**record, "schema_version": SCHEMA_VERSION})
    folder.write_status("finished", epoch=10, epochs=10, spent=7200)
    folder.metrics_file.write_text(
        '{"step": 1, "epoch": 0.1, "health/patch_effective_rank": 9.0}\n'
        '{"step": 2, "epoch": 1.0, "train/images_per_second": 400.0, "train/peak_memory_mib": 2048}\n'
        f'{{"step": 2, "epoch": 1.0, "health/patch_effective_rank": {run.seed + 4.0}}}\n'
    )
    return folder


def answer(folder, benchmark, hits):
    """Write predictions with these hits, in an order that depends on the run."""
    order = np.random.default_rng(len(folder.path.name)).permutation(len(hits))
    labels = np.zeros(len(hits), np.int32)
    top = np.stack([1 - hits, hits], axis=1).astype(np.int32)
    write_predictions(
        ClassPredictions(
            benchmark, ("a", "b"), [f"p{i}" for i in order], labels, top[order],
            np.full((len(hits), 2), 0.5, np.float32), np.zeros(len(hits), np.float32), None, {},
        ),
        folder.predictions_file(benchmark),
    )  # fmt: skip


def cells_of(plan):
    return {plan.label(run): run for run in plan.grid.cells}


def finish_pair(plan, gain=(2.0, 2.1, 1.9, 2.0)):
    """Finish the cells none and dense · 0.1 on val, and dense also on b."""
    shift = [0.0, 5.0, -4.0, 2.0]
    for run in plan.runs:
        if plan.label(run) == "none":
            finish(plan, run, {"val": 60 + shift[run.seed]})
        elif plan.label(run) == "dense · 0.1":
            finish(plan, run, {"val": 60 + shift[run.seed] + gain[run.seed], "b": 30.0})


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("none", "none"),
        ("dense · 0.1", "dense · 0.1"),
        ("dense 0.1", "dense · 0.1"),
        ("dense,0.2", "dense · 0.2"),
        ("no", None),
        ("cl_mode=none", "none"),
        ("cl_mode=dense,temperature=0.2", "dense · 0.2"),
        ("temperature=0.1, cl_mode=glob*", None),
    ],
)
def test_how_a_cell_is_named(plan, text, label):
    if label is None:
        with pytest.raises(UserError):
            find_cell(plan, text)
        return
    assert plan.label(find_cell(plan, text)) == label


def test_a_cell_by_its_id_or_the_beginning(plan):
    for run in plan.grid.cells:
        assert find_cell(plan, run.cell).cell == run.cell
        assert find_cell(plan, run.cell[:6]).cell == run.cell


def test_cells_paired_by_seed(plan):
    finish_pair(plan)
    cells = cells_of(plan)
    found = compare_cells(plan, cells["dense · 0.1"], cells["none"])
    assert found.lines[0].startswith(f"A  dense · 0.1 (cell {cells['dense · 0.1'].cell}, 4 of 4")
    assert found.settings.rows == [["cl_mode", "dense", "none"]]
    assert "Only in A: " in found.settings.note
    assert "temperature 0.1" in found.settings.note
    val, b = found.numbers.rows
    half = 3.182446 * statistics.stdev([2.0, 2.1, 1.9, 2.0]) / 2  # t with 3 degrees of freedom
    assert val[3] == f"+2.0 [{2 - half:.1f}, {2 + half:.1f}] (n=4)"
    assert val[4].startswith("established (p ")
    assert b[1:] == ["30.0 ± 0.0", "missing", "missing", "no seed in common"]
    values = {row[0]: row[1:] for row in found.cost_and_health.rows}
    assert values["GPU-hours"] == ["2.00", "2.00"]
    assert values["images/s"] == ["400", "400"]
    assert values["peak memory (GiB)"] == ["2.00", "2.00"]
    assert values["patch effective rank"] == ["5.50", "5.50"]  # the last of each, mean of 4 to 7


def test_the_other_way_round_has_the_other_sign(plan):
    finish_pair(plan)
    cells = cells_of(plan)
    rows = compare_cells(plan, cells["none"], cells["dense · 0.1"]).numbers.rows
    assert rows[0][3].startswith("−2.0 [−2.")


def test_cells_without_anything_yet(plan):
    cells = cells_of(plan)
    found = compare_cells(plan, cells["none"], cells["global · 0.1"])
    assert found.numbers.rows == []
    assert found.numbers.note == "No results yet."
    assert found.cost_and_health is None


def test_one_seed_points_to_the_runs(plan):
    for run in plan.runs[:5]:
        finish(plan, run, {"val": 50.0})
    cells = cells_of(plan)
    found = compare_cells(plan, cells["none"], cells["dense · 0.2"])
    assert found.numbers.rows[0][3:] == ["+0.0 (n=1)", "one seed: no conclusion"]
    assert "densevit compare RUN RUN" in found.numbers.note


def test_runs_over_the_same_pictures(plan):
    chance = np.random.default_rng(0)
    runs = [cells_of(plan)[name] for name in ("dense · 0.1", "none")]
    wrong = chance.permutation(PICTURES)
    hits = np.ones((2, PICTURES), int)
    hits[0, wrong[:100]] = 0  # 75 %
    hits[1, wrong[:140]] = 0  # 65 %, and never right where the other is wrong
    folders = []
    for run, each in zip(runs, hits, strict=True):
        folder = finish(plan, run, {"val": 100 * each.mean(), "b": 20.0}, PICTURES)
        answer(folder, "val", each)
        folders.append(folder)
    found = compare_runs(*folders)
    val, b = found.numbers.rows
    assert val[:3] == ["val", "75.0", "65.0"]
    low, high = (float(v) for v in val[3].partition("[")[2].rstrip("]").split(", "))
    # 40 of 400 pairs: 10 ± 1.96 · sqrt(0.1 · 0.9 / 400) points
    wanted = 196 * math.sqrt(0.1 * 0.9 / PICTURES)
    assert low == pytest.approx(10 - wanted, abs=0.6)
    assert high == pytest.approx(10 + wanted, abs=0.6)
    assert val[4] == "established, on these images"
    assert b[3:] == ["+0.0", "–"]  # there are no predictions
    assert "other seeds" in found.numbers.note
    assert found.settings.rows == [["cl_mode", "dense", "none"]]
    assert ["hours", "2.00", "2.00"] in found.cost_and_health.rows
    # predictions that are not those of the results say nothing about them
    answer(folders[1], "val", hits[0])
    assert compare_runs(*folders).numbers.rows[0][3] == "+10.0"
    assert "No interval" in compare_runs(*folders).numbers.note


def test_seeds_of_one_cell_differ_in_the_seed(plan):
    runs = [run for run in plan.runs if plan.label(run) == "none"][:2]
    folders = [finish(plan, run, {"val": 50.0}) for run in runs]
    assert compare_runs(*folders).settings.rows == [["seed", "0", "1"]]
    assert compare_runs(*folders, metric="nll").numbers.rows[0][1:4] == ["1.000", "1.000", "+0.000"]


def test_the_command(plan, capsys):
    finish_pair(plan)
    words = ["compare", str(plan.spec.file), "dense 0.1", "cl_mode=none"]
    assert main([*words, "--outputs", str(plan.outputs)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "A  dense · 0.1",
        "B  none",
        "cl_mode",
        "+2.0 [",
        "established",
        "GPU-hours",
        "rank",
    ):
        assert text in shown
    ids = [run.id for run in plan.runs if plan.label(run) in ("none", "dense · 0.1")][:2]
    assert main(["compare", ids[0], ids[1][:7], "--outputs", str(plan.outputs)]) == 0
    assert f"B  {ids[1]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["SWEEP", "none"], "a sweep needs two cells: densevit compare SWEEP A B"),
        (["SWEEP", "nine", "dense 0.1"], "nine: no cell of made_up; did you mean 'none'?"),
        (["SWEEP", "none", "cl_mode=none"], "none: A and B are the same cell"),
        (["SWEEP", "dense", "none"], "dense: fits several cells: "),
        (["SWEEP", "none", ""], ": no cell of made_up"),
        (["SWEEP", "cl_mod=dense", "none"], "cl_mod: unknown setting; did you mean 'cl_mode'?"),
        (["SWEEP", "cl_mode=dens", "none"], "'dens' is not valid; did you mean 'dense'?"),
        (["SWEEP", "seed=1", "none"], "seeds are replicates of a cell"),
        (["SWEEP", "temperature=", "none"], "temperature: "),
        (["SWEEP", "temperature=[0.1", "none"], "temperature=[0.1"),
        (["SWEEP", "queue_size=5", "none"], "queue_size=5: no cell of made_up"),
        (["SWEEP", "RUN", "none"], "is a run; to compare two runs, leave out the sweep's file"),
        (["SWEEP", "none", "dense 0.1", "--metric", "topp1"], "--metric topp1: no run has it; did"),
        (["SWEEP", "none", "dense 0.1", "--difference", "-1"], "must be a number of points above 0"),
        (["gone.yaml", "none", "dense"], "gone.yaml: no such file"),
        (["RUN", "RUN"], "A and B are the same run"),
        (["RUN", "nothing"], "nothing: no such run"),
        (["RUN", "PENDING"], "results.json: no such file; the run is "),
        (["RUN"], "required: A"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(plan, capsys, words, told):
    finish_pair(plan)
    pending = plan.runs[1]
    plan.run_folder(pending).create(pending.config)
    names = {"SWEEP": str(plan.spec.file), "RUN": plan.runs[0].id, "PENDING": pending.id}
    given = [names.get(word, word) for word in words]
    try:
        code = main(["compare", *given, "--outputs", str(plan.outputs)])
    except SystemExit as ended:
        code = ended.code
    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err


def test_a_beginning_that_fits_several_runs(plan, capsys):
    finish_pair(plan)
    for name in ("aaa1", "aaa2"):
        (plan.outputs / "runs" / name).mkdir()
    assert main(["compare", plan.runs[0].id, "aaa", "--outputs", str(plan.outputs)]) == 2
    assert "aaa: fits several runs: aaa1, aaa2" in capsys.readouterr().err


def test_damaged_files_are_told(plan):
    folders = [finish(plan, run, {"val": 50.0}) for run in plan.runs[:2]]
    folders[0].metrics_file.write_text("{\n")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read"):
        compare_runs(*folders)
    write_json(folders[0].results_file, {"benchmarks": {"val": 5}})
    with pytest.raises(UserError, match=r"results.json: is damaged"):
        compare_runs(*folders)
