import random
import re

import matplotlib as mpl
import pytest
from PIL import Image
from webpage import check

from densevit.cli.sweep import main_sweep
from densevit.results.collect.numbers import collect
from densevit.results.figures.accuracy import accuracy
from densevit.results.report import provenance, write
from densevit.results.tables.best_cells import marked_table
from densevit.results.tables.main_table import cell_table, cell_table_text
from densevit.results.tables.table import to_csv, to_markdown
from densevit.utils.files import read_json, write_json

BASELINE = "baseline: {cl_mode: none}"
GRID = ["grid: {cl_mode: [none, global, dense], temperature: [0.1, 0.2]}", "seeds: 2"]


def test_every_part_is_written_and_linked(sweep, finish_all):
    plan = sweep(*GRID, "description: Does dense help?")
    finish_all(plan)
    made = write.write(plan)
    frame = collect(plan)
    table = cell_table(plan, frame)
    marked = to_markdown(marked_table(table, frame))
    assert (made.folder / "table.md").read_text() == marked
    assert (made.folder / "table.csv").read_text() == to_csv(cell_table_text(table))
    with Image.open(made.folder / "accuracy.png") as image:
        image.verify()
        assert image.format == "PNG"
    assert (made.folder / "accuracy.pdf").read_bytes().startswith(b"%PDF")
    text = (made.folder / "report.md").read_text()
    assert "Does dense help?" in text
    assert marked.strip() in text
    assert "10 runs planned (5 cells, 2 seeds each): 10 finished." in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) >= 2  # figures and the page
    for link in links:
        assert (made.folder / link).is_file()
    assert all(run.id in text for run in plan.runs)
    assert f"densevit-sweep {plan.spec.file}" in text
    assert made.folder == plan.folder / "report"


def test_the_page_holds_what_the_short_form_does_and_more(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 4", BASELINE)
    plan.spec.file.write_text(
        "# Question: does dense\n# help?\n# Size: 1\n" + plan.spec.file.read_text()
    )
    finish_all(plan)
    made = write.write(plan)
    text = (made.folder / "report.html").read_text()
    read = check(text)
    shown = read.all("body")[0]["text"]
    assert "Does dense help?" in shown
    assert "Size: 1" not in shown
    titles = [e["text"] for e in read.all("h2")]
    assert titles[0] == "The answer"
    short = re.findall(r"^## (.*)$", (made.folder / "report.md").read_text(), re.MULTILINE)
    assert short
    assert set(short) <= set(titles)
    assert "8 comparisons" not in shown  # 2 cells on 3 test sets
    assert "Established: no difference (6 comparisons with the baseline, 4 seeds)." in shown
    assert made.conclusions
    for sentence in made.conclusions:
        assert sentence in shown.replace("\xa0", " ")
    commands = [e["text"] for e in read.all("code")]
    assert provenance.train_command(plan.runs[0].config) in commands
    assert any(c.startswith(f"densevit-sweep {plan.spec.file}") for c in commands)
    assert len(read.all("img")) >= 2
    assert len(text) < 5e6


@pytest.mark.usefixtures("no_figures")
def test_what_the_answer_says_follows_the_numbers(sweep, finish):
    """Planted: dense is 3 points better under shift and not on val; global does not differ."""
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 6", BASELINE)
    noise = random.Random(1)
    for run in plan.runs:
        mode, base = run.config.cl_mode, 50 + 2 * random.Random(run.seed).random()
        gain = {"none": 0.0, "global": 0.0, "dense": 3.0}[mode]
        finish(plan, run, {"val": base + noise.gauss(0, 0.05),
                           "sketch": base - 20 + gain + noise.gauss(0, 0.05)})  # fmt: skip
    lines = write.write(plan).conclusions
    assert lines[0].startswith("Established (4 comparisons with the baseline, 6 seeds): dense − no")
    assert "none on sketch (+3.0 [" in lines[0]
    assert lines[1].startswith("Equivalent, surely within ±1.0 points: ")
    assert any(
        line.startswith("Established beyond clean accuracy") and ", of which +3.0 [" in line
        for line in lines
    )
    text = " ".join(write.write(plan, smallest_effect=0.01).conclusions)
    assert "Equivalent" not in text


@pytest.mark.usefixtures("no_figures")
def test_a_gain_that_is_clean_accuracy_is_called_so(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 6", BASELINE)
    noise = random.Random(2)
    for run in plan.runs:
        gain = 3.0 if run.config.cl_mode == "dense" else 0.0
        numbers = {"val": 50 + gain, "sketch": 30 + gain}
        finish(plan, run, {k: v + noise.gauss(0, 0.2) for k, v in numbers.items()})
    lines = " ".join(write.write(plan).conclusions)
    assert "dense − none on sketch (+" in lines
    assert "Not established beyond clean accuracy" in lines


@pytest.mark.usefixtures("no_figures")
def test_without_a_baseline_no_differences_are_told(sweep, finish_all):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 3")
    finish_all(plan)
    made = write.write(plan)
    assert "names no baseline" in made.conclusions[0]
    assert "comparison" not in " ".join(made.conclusions)
    check((made.folder / "report.html").read_text())


@pytest.mark.usefixtures("no_figures")
def test_clean_accuracy_to_compare_with_where_it_is_another(sweep, finish_all):
    plan = sweep("grid: {temperature: [0.1, 0.2]}")
    numbers = finish_all(plan, ["val", "other", "alike"])
    for run in plan.runs:
        results = read_json(plan.run_folder(run).results_file)
        results["benchmarks"]["other"]["matched_clean"] = 33.25
        results["benchmarks"]["alike"]["matched_clean"] = numbers[run.id]["val"] + 0.01
        write_json(plan.run_folder(run).results_file, results)
    _, _, section = (
        (write.write(plan).folder / "report.md").read_text().partition("## Clean accuracy")
    )
    rows = section.partition("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row[:1] == "|"]
    assert table[0] == ["temperature", "seeds", "other"]
    assert [row[0] for row in table[2:]] == ["0.1", "0.2"]
    assert {row[2].partition(" ")[0] for row in table[2:]} == {"33.2"}


@pytest.mark.usefixtures("no_figures")  # those are drawn once: test_figures.py
def test_twice_gives_the_same_bytes(sweep, finish_all):
    plan = sweep(*GRID)
    finish_all(plan)
    made = write.write(plan)
    files = sorted(made.folder.iterdir())
    before = [file.read_bytes() for file in files]
    write.write(plan)
    assert sorted(made.folder.iterdir()) == files
    assert [file.read_bytes() for file in files] == before


@pytest.mark.usefixtures("no_figures")
def test_while_the_sweep_runs(sweep, finish):
    plan = sweep(*GRID, "exclude: [{where: {cl_mode: dense, temperature: 0.1}, because: unstable}]")
    done, failed, *_ = plan.runs
    finish(plan, done, {"val": 50.0})
    folder = plan.run_folder(failed)
    folder.create(failed.config)
    folder.write_status("failed", message="out of memory")
    folder.log_file.write_text("start\n10%\r\x1b[31m90%\n\nboom | ```\n")
    made = write.write(plan)
    text = (made.folder / "report.md").read_text()
    page = check((made.folder / "report.html").read_text())
    assert "boom | ```" in page.all("pre")[0]["text"]
    assert "1 finished, 1 failed" in text
    assert "6 pending" in text
    assert f"**{failed.id}** (global · 0.1, seed 0): out of memory" in text
    assert "    start\n    90%\n    boom | ```\n" in text
    assert "Left out: 1 cell with cl_mode: dense, temperature: 0.1: unstable" in text


def test_with_nothing_finished(sweep):
    made = write.write(sweep(*GRID))
    text = (made.folder / "report.md").read_text()
    check((made.folder / "report.html").read_text())
    assert "10 pending" in text
    assert text.count("missing") == 5
    with Image.open(made.folder / "accuracy.png") as image:
        assert image.width == pytest.approx(3.5 * 300, abs=2)


def test_the_figure_shows_the_table_and_what_is_missing(sweep, finish):
    plan = sweep("grid: {cl_mode: [none, global, dense]}", "seeds: 2")
    for run, value in zip(plan.runs[::3], [40.0, 50.0], strict=True):
        finish(plan, run, {"val": value, "b": value + 1})
    frame = collect(plan)
    panels = accuracy(cell_table(plan, frame), frame).axes
    spread = 50**0.5  # of 40 and 50
    for axes, title, mean in zip(panels, ("val", "b"), (45, 46), strict=True):
        drawn = sorted(x for line in axes.get_lines() for x in line.get_xdata() if x > 1)
        wanted = [mean - 5, mean + 5, mean, mean - spread, mean + spread]
        assert drawn == pytest.approx(sorted(wanted))
        assert [text.get_text() for text in axes.texts] == ["missing"] * 2
        assert axes.get_title(loc="left") == title
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == ["none", "global", "dense"]


def test_a_percentage_has_no_axis_beyond_100(sweep, finish_all, finish):
    plan = sweep("seeds: 2")
    for run in plan.runs:
        finish(plan, run, {"val": 100.0, "b": 0.0})
    frame = collect(plan)
    limits = [axes.get_xlim() for axes in accuracy(cell_table(plan, frame), frame).axes]
    assert limits == [(98.0, 100.0), (0.0, 2.0)]


def test_the_users_matplotlib_stays_as_it_was(sweep, finish_all):
    plan = sweep("seeds: 2")
    finish_all(plan, ["val"])
    with mpl.rc_context({"font.size": 31.0}):
        before = dict(mpl.rcParams)
        write.write(plan)
        assert dict(mpl.rcParams) == before


# For a model with 60 % clean accuracy, the odds of 50 and 70 % become those of 30 and 50 %.
ON_LINE = 100 * (1.5 * 3 / 7) / (1 + 1.5 * 3 / 7)


@pytest.mark.usefixtures("no_figures")
def test_robustness_beyond_clean_accuracy(sweep, finish, tmp_path, capsys):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2")
    for run in plan.runs:
        dense = run.config.cl_mode == "dense"
        finish(plan, run, {"val": 60.0, "imagenet-v2": 50.0, "mine": ON_LINE + 5 * dense})
    # There are published models for V2; for `mine` only those of one's own.
    assert re.search(
        r"\| cell +\| imagenet-v2 +\|", (write.write(plan).folder / "report.md").read_text()
    )
    own = tmp_path / "own.csv"
    own.write_text(f"model,val,mine\na,50,30\nb,60,{ON_LINE}\nc,70,50\n")
    capsys.readouterr()
    assert main_sweep(["report", str(plan.spec.file), "--outputs", str(plan.outputs), "--references", str(own)]) == 0  # fmt: skip
    text = (plan.folder / "report" / "report.md").read_text()
    rows = dict(re.findall(r"^\| (none|dense) *\| *([+-][\d.]+) \[", text, re.MULTILINE))
    assert float(rows["dense"]) - float(rows["none"]) == pytest.approx(5.0)
    assert float(rows["none"]) == 0
    assert main_sweep(["report", str(plan.spec.file), "--references", str(tmp_path / "no.csv")]) == 2  # fmt: skip
    assert "no.csv" in capsys.readouterr().err
