"""Figures are drawn where numbers are new, and only there."""

import multiprocessing

import pytest
from PIL import Image

from densevit.results import drawings, report
from densevit.rundir import read_json, write_json

GRID = ["grid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}", "seeds: 2",
        "baseline: {cl_mode: none}"]  # fmt: skip


@pytest.fixture(autouse=True)
def _little_is_written(monkeypatch):
    """Which figures are drawn, and when, does not depend on what they show: see test_report.py."""

    def save(figure, png, pdf):
        Image.new("RGB", (60, 40)).save(png)
        pdf.write_bytes(b"%PDF-")

    monkeypatch.setattr(drawings, "save", save)


@pytest.fixture
def drawn(monkeypatch):
    """The names of the figures that are written from now on."""
    names = []
    monkeypatch.setattr(drawings, "save_all", lambda figures: _write(figures, names))
    return names


def _write(figures, names):
    names += [png.stem for _, (png, _, _) in figures]
    drawings._save_each(figures)


def test_what_has_not_changed_is_not_drawn_again(sweep, finish_all, drawn):
    plan = sweep(*GRID)
    finish_all(plan)
    report.write(plan)
    assert {"accuracy", "differences", "effects", "heat-val", "robustness"} <= set(drawn)
    drawn.clear()
    report.write(plan)
    assert drawn == []
    file = plan.run_folder(plan.runs[0]).results_file
    results = read_json(file)
    results["benchmarks"]["shapes-sketch"]["top1"] += 1.0
    write_json(file, results)
    report.write(plan)
    assert "accuracy" in drawn
    assert "heat-val" not in drawn


def test_a_file_that_is_gone_is_drawn_again_and_one_of_nothing_goes(sweep, finish_all, drawn):
    plan = sweep(*GRID)
    finish_all(plan)
    made = report.write(plan)
    made.figure_pdf.unlink()
    drawn.clear()
    report.write(plan)
    assert drawn == ["accuracy"]
    assert made.figure_pdf.is_file()
    for run in plan.runs:
        plan.run_folder(run).results_file.unlink()
        plan.run_folder(run).status_file.unlink()
    report.write(plan)
    assert not (made.report_html.parent / "differences.png").exists()
    assert made.figure_png.is_file()


def test_a_process_that_fails_leaves_its_figures_to_this_one(sweep, finish_all, monkeypatch):
    here, save = multiprocessing.current_process().pid, drawings._save_each

    def fail_apart(figures):
        if multiprocessing.current_process().pid != here:
            raise SystemExit(3)
        save(figures)

    monkeypatch.setattr(drawings, "_save_each", fail_apart)
    monkeypatch.setattr(drawings.os, "sched_getaffinity", lambda _: {0, 1})
    plan = sweep(*GRID)
    finish_all(plan)
    made = report.write(plan)
    names = ("accuracy", "differences", "effects", "robustness", "heat-val")
    assert all((made.report_md.parent / f"{name}.pdf").is_file() for name in names)


def test_the_axes_that_explain_most_are_the_heat_map(sweep, finish):
    plan = sweep(
        "grid: {cl_mode: [dense], temperature: [0.1, 0.2], queue_size: [8, 16], epochs: [10, 20]}",
        "seeds: 2",
    )
    for run in plan.runs:
        config = run.config
        finish(plan, run, {"val": 30 + 50 * config.temperature + config.epochs / 5 + run.seed / 9})
    report.write(plan)
    html = (plan.folder / "report" / "report.html").read_text()
    assert "for each pair of temperature and epochs" in html


def test_without_a_place_to_keep_them_they_are_drawn_all_the_same(sweep, finish_all):
    plan = sweep(*GRID)
    finish_all(plan)
    plan.folder.mkdir(parents=True)
    (plan.folder / "cache").write_text("a file")
    made = report.write(plan)
    assert made.figure_png.is_file()
    assert made.report_html.read_text().count("<img") > 3
