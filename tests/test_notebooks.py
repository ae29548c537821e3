"""The notebooks: how they are stored, and that they show the results of the runs.

Each is executed once on a synthetic sweep with missing runs that varies all their axes: two in a
kernel, one of them from another folder, and the others in this process. All are also executed on
sweeps that vary other axes, or are not finished.
"""

import ast
import json
import math
import re
import statistics
import sys
import warnings
from base64 import b64encode
from functools import partial
from itertools import product
from pathlib import Path

import nbformat
import numpy as np
import pytest
from notebooks import ANALYSIS, NOTEBOOKS, NotebookFailed, pictures, rows, run_notebook, texts

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))
sys.path.insert(0, str(ANALYSIS))
import showing
from madeup import Effects, make_sweep, sweep_record, write_runs

from densevit.sweep.plan import make_plan

NAMES = [
    "health_and_matches", "model_size", "queue_and_temperature", "robustness_tables",
    "sampling_ablation",
]  # fmt: skip
LEVELS = {
    "sampling_strategy": ["random", "hardest"],
    "temperature": [0.1, 0.2],
    "queue_size": [1024, 4096],
    "model_name": ["vit_tiny_patch16_224", "vit_small_patch16_224"],
}
SEEDS = (0, 1, 2)
T = 4.302653  # the 97.5 % point of Student's distribution with 2 degrees of freedom
PICTURES = 200
LEAST = 100 / (PICTURES * 6**0.5)  # standard deviation of differences that rounding causes
BASE = {"cl_mode": "none", "model_name": LEVELS["model_name"][0]}
DENSE = {"cl_mode": "dense"} | {axis: values[0] for axis, values in LEVELS.items()}


def held(file):
    return nbformat.read(file, as_version=4)


def test_they_are_all_here():
    assert [file.stem for file in NOTEBOOKS] == NAMES


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_stored_without_what_a_run_leaves(file):
    notebook = held(file)
    nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert re.fullmatch("[a-z-]{1,20}", cell["id"])
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert not re.search(r"/(home|root|tmp|work|Users)\b", file.read_text(encoding="utf-8"))
    assert file.read_text(encoding="utf-8") == nbformat.writes(notebook) + "\n"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_a_question_one_variable_and_words_for_each_part(file):
    cells = held(file).cells
    assert cells[0]["cell_type"] == "markdown"
    assert re.search(r"^# .*\n\n\*\*[^*]*\?", cells[0]["source"])
    first, opening, *others = [cell for cell in cells if cell["cell_type"] == "code"]
    assert re.search(r'^SWEEP = os.environ.get\("DENSEVIT_SWEEP", "(.*)"\)$', first["source"], re.M)
    assert "open_sweep(SWEEP)" in opening["source"]
    for cell in others:
        before = cells[cells.index(cell) - 1]
        assert before["cell_type"] == "markdown"
        assert re.search("^- ", before["source"], re.MULTILINE), "what it cannot tell"
    for cell in (first, opening, *others):  # no statistics or drawing of its own
        tree = ast.walk(ast.parse(cell["source"]))
        imported = {n.module for n in tree if isinstance(n, ast.ImportFrom)}
        assert imported <= {"showing", "dataclasses"} | {m for m in imported if "densevit" in m}


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Return a sweep of 25 cells with three seeds; of the last cell one run failed and one has not
    started."""
    folder = tmp_path_factory.mktemp("larger")
    file = folder / "larger.yaml"
    record = sweep_record("larger", 1, len(SEEDS), 4)
    record["grid"] = {"cl_mode": ["none", "global", "dense"], **LEVELS}
    where = {"cl_mode": "global"} | {axis: LEVELS[axis][1] for axis in list(LEVELS)[1:]}
    record["exclude"] = [{"where": where, "because": "a hole in the grid"}]
    file.write_text(json.dumps(record), encoding="utf-8")
    plan = make_plan(file, folder / "outputs")
    _, failing, pending = (run for run in plan.runs if run.cell == plan.runs[-1].cell)
    rest = [run for run in plan.runs if run not in (failing, pending)]
    noisy = Effects(own=1.5)
    write_runs(plan, rest, effects=noisy, pictures=PICTURES)
    write_runs(plan, [failing], effects=noisy, pictures=PICTURES, fail=True)
    collapse(plan, rest)
    keep_matches(plan, rest[0])
    return plan


def collapse(plan, runs):
    """Record a collapse at the last check of one run of the first dense cell."""
    run = next(run for run in runs if settings(run) == DENSE and run.seed == 1)
    with plan.run_folder(run).metrics_file.open("a") as metrics:
        metrics.write('{"step": 400, "epoch": 4.0, "time": 0, "health/collapsed": 1.0}\n')


def keep_matches(plan, run):
    """Write matches as `correspondence_file` stores them, for one gray image of 2 x 2 patches."""
    for when in ("before", "after"):
        file = plan.run_folder(run).matches_file(when)
        file.parent.mkdir(exist_ok=True)
        np.savez(
            file, grid=np.array([2, 2]), pixels=np.full((1, 2, 32, 32, 3), 128, np.uint8),
            places=np.zeros((1, 2, 4), np.float32), partner=np.array([[0, 1, 2, 2]]),
            similarity=np.full((1, 4), 0.5, np.float32), truth=np.array([[0, 1, 0, -1]]),
            right=np.array([[True, True, False, False]]),
        )  # fmt: skip


def settings(run):
    """Return the values of a run's cell on the axes that apply to it."""
    applying = {"none": ["model_name"], "global": ["temperature", "queue_size", "model_name"]}
    names = applying.get(run.config.cl_mode, LEVELS)
    return {"cl_mode": run.config.cl_mode} | {name: getattr(run.config, name) for name in names}


class Held:
    """The results in the run directories."""

    def __init__(self, plan):
        self.cells = []
        self.numbers = {}
        for run in plan.runs:
            cell = settings(run)
            if cell not in self.cells:
                self.cells.append(cell)
            file = plan.run_folder(run).results_file
            if file.exists():
                self.numbers[self._key(cell), run.seed] = json.loads(file.read_text())["benchmarks"]

    def _key(self, cell):
        return tuple(sorted(cell.items()))

    def top1(self, cell, benchmark, seed):
        """Return top-1; NaN if the run has no results, or the cell is not part of the sweep."""
        found = self.numbers.get((self._key(cell), seed))
        return math.nan if found is None else found[benchmark]["top1"]

    def seeds(self, cell, benchmark):
        return [self.top1(cell, benchmark, seed) for seed in SEEDS]

    def effect(self, axis, benchmark):
        """Return the second level minus the first by seed, over the contexts that all seeds have of
        both."""
        a, b = LEVELS[axis]
        both = [
            (self.seeds(cell, benchmark), self.seeds(cell | {axis: b}, benchmark))
            for cell in self.cells
            if cell.get(axis) == a
        ]
        whole = [pair for pair in both if not any(map(math.isnan, (*pair[0], *pair[1])))]
        return [
            statistics.fmean(theirs[seed] - ours[seed] for ours, theirs in whole) for seed in SEEDS
        ], len(whole)


def interval(values):
    """Return the mean of three differences with its interval, as a table shows it."""
    mean = statistics.fmean(values)
    half = T * max(statistics.stdev(values), LEAST) / 3**0.5
    text = f"{mean:+z.1f} [{mean - half:z.1f}, {mean + half:z.1f}]"
    return text.replace("-", "−")


def spread(values):
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def entry(text, benchmark, *begin):
    """Return the entry of a table's column in the row with this beginning."""
    head, *body = rows(text)
    found = [row for row in body if row[: len(begin)] == list(begin)]
    assert len(found) == 1, (begin, text)
    names = [title.partition(" (")[0] for title in head]  # made-up sets have a part of the classes
    return found[0][names.index(benchmark)]


@pytest.fixture
def told(monkeypatch):
    """Return a function that runs a notebook's code in this process, where its imports are loaded,
    and returns it with the outputs of its cells. A warning is an error."""

    def run(name, plan):
        monkeypatch.chdir(ANALYSIS)
        monkeypatch.setenv("DENSEVIT_SWEEP", str(plan.spec.file))
        monkeypatch.setenv("DENSEVIT_OUTPUTS", str(plan.outputs))
        monkeypatch.setattr(sys, "path", list(sys.path))
        done, space = held(ANALYSIS / f"{name}.ipynb"), {}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for cell in done.cells:
                if cell["cell_type"] == "code":
                    monkeypatch.setattr(showing, "display", partial(keep, cell["outputs"]))
                    exec(compile(cell["source"], f"{name}:{cell['id']}", "exec"), space)
        return done

    return run


def keep(outputs, thing):
    """Store displayed data as a kernel does."""
    is_text = isinstance(thing, showing.Markdown)
    data = (
        {"text/markdown": thing.data} if is_text else {"image/png": b64encode(thing.data).decode()}
    )
    outputs.append(nbformat.v4.new_output("display_data", data))


def shown(done):
    """Return all texts of a notebook's outputs, and the number of images."""
    cells = [cell["id"] for cell in done.cells if cell["cell_type"] == "code"]
    images = sum(len(pictures(done, cell)) for cell in cells)
    return [text for cell in cells for text in texts(done, cell)], images


@pytest.fixture
def executed(larger, told, capfd):
    """Return a function that runs a notebook on that sweep: in a kernel, from a folder, or here."""

    def execute(name, folder=None):
        if folder is None:
            done = told(name, larger)
            assert capfd.readouterr() == ("", "")
        else:
            file = ANALYSIS / f"{name}.ipynb"
            done = run_notebook(file, sweep=larger.spec.file, outputs=larger.outputs, folder=folder)
            said = [o for cell in done.cells for o in cell.get("outputs", []) if "name" in o]
            assert not said, said  # neither warnings nor prints
        first, counted, *_ = texts(done, "open")
        assert first.startswith("**larger**: ")
        assert "73 of 75 planned runs have results; 1 failed, 1 pending." in counted
        return done, Held(larger)

    return execute


def test_robustness_tables(executed):
    done, held = executed("robustness_tables", ANALYSIS.parent)
    label = ("dense", "random", "0.1", "1024", "vit_tiny_patch16_224")
    accuracy = texts(done, "accuracy")[0]
    sketch = held.seeds(DENSE, "imagenet-sketch")
    assert entry(accuracy, "imagenet-sketch", *label).removesuffix(" †") == spread(sketch)
    last = ("dense", "hardest", "0.2", "4096", "vit_small_patch16_224", "1/3")
    assert " ± " not in entry(accuracy, "val", *last)
    differences, beyond = texts(done, "differences")[0], texts(done, "beyond")[-1]
    apart = np.subtract(sketch, held.seeds(BASE, "imagenet-sketch"))
    told = entry(differences, "imagenet-sketch", " · ".join(label))
    assert told.rstrip(" ↑↓?≈") == interval(apart.tolist())
    assert "Difference beyond clean accuracy" in beyond
    assert len(rows(beyond)) == len(rows(differences))
    assert [len(pictures(done, cell)) for cell in ("accuracy", "differences", "shift")] == [1, 1, 1]


def test_sampling_ablation(executed):
    done, held = executed("sampling_ablation")
    (accuracy,) = texts(done, "accuracy")
    cells = [c for c in held.cells if c["cl_mode"] == "dense"]
    random = [c for c in cells if c["sampling_strategy"] == "random"]
    by_seed = np.mean([held.seeds(cell, "imagenet-r") for cell in random], axis=0)
    assert len(random) == 8
    assert entry(accuracy, "imagenet-r", "dense", "random") == spread(by_seed.tolist())
    assert entry(accuracy, "val", "dense", "hardest").endswith(" (22 of 24)")
    effects = next(text for text in texts(done, "effects") if "**Effect of each axis" in text)
    values, contexts = held.effect("sampling_strategy", "imagenet-r")
    assert contexts == 7  # without the context of which two seeds are missing
    row = ("imagenet-r", "sampling_strategy", "hardest", "random", "7", "3")
    assert entry(effects, "difference", *row) == interval(values)
    assert len(rows(effects)) == 1 + 6
    assert [len(pictures(done, c)) for c in ("effects", "heat", "differences", "queue")] == [
        1, 2, 1, 2,
    ]  # fmt: skip


def test_queue_and_temperature(executed):
    done, held = executed("queue_and_temperature")
    effects = next(text for text in texts(done, "effects") if "**Effect of each axis" in text)
    for axis, benchmark in product(("temperature", "queue_size"), ("val", "imagenet-v2")):
        values, contexts = held.effect(axis, benchmark)
        first, second = map(str, LEVELS[axis])
        row = (benchmark, axis, second, first, str(contexts), "3")
        assert entry(effects, "difference", *row) == interval(values)
    queue, temperature = texts(done, "accuracy")
    assert rows(queue)[0][:2] == ["cl_mode", "queue_size"]
    assert rows(temperature)[0][:2] == ["cl_mode", "temperature"]
    assert "**Cost of a run" in texts(done, "cost")[0]
    assert texts(done, "learned") == ["No run of this sweep learns its temperature."]
    assert [len(pictures(done, cell)) for cell in ("effects", "heat", "cost")] == [1, 2, 1]


def test_model_size(executed):
    done, held = executed("model_size")
    small = LEVELS["model_name"][1]
    gain = np.subtract(
        held.seeds(DENSE | {"model_name": small}, "val"),
        held.seeds(BASE | {"model_name": small}, "val"),
    )
    sentences, table = texts(done, "gain")
    told = entry(table, "val", f"dense · random · 0.1 · 1024 · {small}", f"none · {small}")
    assert told.rstrip(" ↑↓?≈") == interval(gain.tolist())
    assert "dense − none" in sentences
    (accuracy,) = texts(done, "accuracy")
    assert entry(accuracy, "val", small, "none") == spread(
        held.seeds(BASE | {"model_name": small}, "val")
    )
    assert "**Cost of a run" in texts(done, "cost")[0]
    assert [len(pictures(done, cell)) for cell in ("gain", "effects", "cost")] == [1, 1, 1]


def test_health_and_matches(executed, larger):
    done, _ = executed("health_and_matches", ANALYSIS)
    (collapsed,) = texts(done, "collapsed")
    label = "dense · random · 0.1 · 1024 · vit_tiny_patch16_224"
    assert f"features of {label} collapsed in 1 of 3 seeds (seed 1)" in collapsed
    lines, table = texts(done, "numbers")[:2]
    cell = re.search(r"^- A +.*\(cell (\w+),", lines)[1]
    last = []
    for run in larger.runs:
        if run.cell == cell:
            logged = map(json.loads, larger.run_folder(run).metrics_file.read_text().splitlines())
            named = [line["health/patch_rank"] for line in logged if "health/patch_rank" in line]
            last.append(named[-1])
    assert len(last) == 3
    assert float(entry(table, "A", "patch rank")) == pytest.approx(statistics.fmean(last), rel=5e-3)
    assert texts(done, "probe") == ["No run of this sweep has a dense probe."]
    assert texts(done, "matches") == ["none · vit_tiny_patch16_224, seed 0"]
    assert [len(pictures(done, cell)) for cell in ("health", "learning", "matches")] == [1, 1, 1]


ABSENT = {
    "sampling_ablation": "sampling_strategy or sampled_patches",
    "queue_and_temperature": "queue_size, temperature or learnable_temp",
    "model_size": "model_name or model_kwargs",
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_sweep_that_varies_something_else(told, tmp_path, name):
    texts, images = shown(told(name, make_sweep(tmp_path, 3, 1, epochs=2)))
    assert texts[-1] == f"This sweep does not vary {ABSENT[name]}: nothing to show."
    assert (len(texts), images) == (3, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failed", [0, 1])
def test_a_sweep_that_is_not_finished(told, tmp_path, name, failed):
    """Before the first run; and with one seed of each cell, two of the first, and a failure."""
    plan = make_sweep(tmp_path, 5, 3, epochs=2, pending=8 if failed else 15, failed=failed)
    texts, images = shown(told(name, plan))
    assert f"{6 * failed} of 15 planned runs have results" in texts[1]
    assert (images > 0) == (failed > 0 and name not in ("sampling_ablation", "model_size"))


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_without_a_baseline_or_a_shifted_set(told, tmp_path, name):
    file = tmp_path / "alone.yaml"
    record = sweep_record("alone", 1, 1, 2)
    record["grid"] = {axis: LEVELS[axis] for axis in ("sampling_strategy", "model_name")}
    record["grid"]["learnable_temp"] = [False, True]
    del record["baseline"]
    record["fixed"]["cl_mode"] = "dense"
    del record["fixed"]["benchmarks"]
    file.write_text(json.dumps(record), encoding="utf-8")
    plan = make_plan(file, tmp_path / "outputs")
    write_runs(plan, plan.runs)
    for run in plan.runs:
        results = plan.run_folder(run).results_file
        record = json.loads(results.read_text())
        record["benchmarks"] = {"val": record["benchmarks"]["val"]}
        results.write_text(json.dumps(record))
    texts, images = shown(told(name, plan))
    assert "All planned runs (8) are finished" in texts[1]
    assert dict(zip(NAMES, (2, 2, 3, 1, 4), strict=True))[name] == images
    none = "No run of this sweep has results on a shifted test set."
    assert (none in texts) == (name == "robustness_tables")


def test_a_failing_cell_is_named(tmp_path):
    file = tmp_path / "broken.ipynb"
    cell = nbformat.v4.new_code_cell("raise ValueError('no such thing')", id="third")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), file)
    with pytest.raises(NotebookFailed, match=r"^broken.ipynb: cell third: ValueError: no such"):
        run_notebook(file, sweep=tmp_path, outputs=tmp_path, folder=tmp_path)
