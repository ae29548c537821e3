"""Which figures a report has."""

import pytest
from PIL import Image

from densevit.results.report import figures, write

GRID = ["grid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}", "seeds: 2",
        "baseline: {cl_mode: none}"]  # fmt: skip


@pytest.fixture(autouse=True)
def _little_is_written(monkeypatch):
    """Which figures are drawn does not depend on what they show: see test_report.py."""

    def save(figure, png, pdf):
        Image.new("RGB", (60, 40)).save(png)
        pdf.write_bytes(b"%PDF-")

    monkeypatch.setattr(figures, "save", save)


def test_each_figure_that_has_data_is_written_and_one_without_goes(sweep, finish_all):
    plan = sweep(*GRID)
    finish_all(plan)
    made = write.write(plan)
    folder = made.folder
    drawn = {file.stem for file in folder.glob("*.png")}
    assert {"accuracy", "differences", "effects", "heat-val", "robustness"} <= drawn
    assert {file.stem for file in folder.glob("*.pdf")} == drawn
    for run in plan.runs:
        plan.run_folder(run).results_file.unlink()
        plan.run_folder(run).status_file.unlink()
    write.write(plan)
    assert {file.name for file in folder.glob("*.p*")} == {"accuracy.png", "accuracy.pdf"}


def test_the_axes_that_explain_most_are_the_heat_map(sweep, finish):
    plan = sweep(
        "grid: {cl_mode: [dense], temperature: [0.1, 0.2], queue_size: [8, 16], epochs: [10, 20]}",
        "seeds: 2",
    )
    for run in plan.runs:
        config = run.config
        finish(plan, run, {"val": 30 + 50 * config.temperature + config.epochs / 5 + run.seed / 9})
    write.write(plan)
    html = (plan.folder / "report" / "report.html").read_text()
    assert "for each pair of temperature and epochs" in html
