"""The folder for a paper holds the report's numbers, and compiles."""

import os
import re
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure

from densevit.cli.main import main_sweep
from densevit.results.paper.sources import ENTRIES, bibtex
from densevit.results.paper.tables import PAGE, fitted, letters, transposed
from densevit.results.tables.table import TextTable

GRID = ["grid: {cl_mode: [none, global, dense], temperature: [0.1, 0.2]}", "seeds: 3",
        "baseline: {cl_mode: none}", "names: {dense: DenseCL & ours, none: no loss}"]  # fmt: skip
SETS = ["val", "imagenet-a", "imagenet-r", "imagenet-v2", "imagenet-sketch", "stylized-imagenet"]


@pytest.mark.usefixtures("no_figures")
def test_it_compiles_with_every_table_on_the_page(sweep, finish_all):
    """No error, no undefined reference, and no line that is wider than the page."""
    if shutil.which("pdflatex") is None and not os.environ.get("DENSEVIT_REQUIRE_TEX"):
        pytest.skip("pdflatex is not installed")
    plan = sweep(*GRID)
    finish_all(plan, SETS)
    (plan.folder / "report").mkdir(parents=True)
    Figure((3.5, 1)).savefig(plan.folder / "report" / "accuracy.pdf")  # as the report draws it
    words = ["report", str(plan.spec.file), "--outputs", str(plan.outputs), "--paper"]
    assert main_sweep(words) == 0
    folder = plan.folder / "report" / "paper"
    for command in ("pdflatex", "bibtex", "pdflatex", "pdflatex"):
        flags = ["-interaction=nonstopmode", "-halt-on-error"] if command == "pdflatex" else []
        done = subprocess.run(
            [command, *flags, "paper"], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
    assert (folder / "paper.pdf").read_bytes().startswith(b"%PDF")
    assert "Overfull" not in done.stdout
    assert "undefined" not in done.stdout
    assert (folder / "accuracy.pdf").exists()
    main = (folder / "table-main.tex").read_text()
    assert r"DenseCL \& ours" in main
    assert r"\label{tab:main}" in main
    bibliography = (folder / "references.bib").read_text()
    assert "{Dense Contrastive Learning" in bibliography
    assert "wang2019sketch" in bibliography
    assert "li2017pacs" not in bibliography


def test_every_source_is_an_entry_of_its_own():
    entries = re.findall(r"^@\w+\{([\w]+),$", bibtex(ENTRIES), re.MULTILINE)
    assert entries == list(ENTRIES)
    for key, (_, fields) in ENTRIES.items():
        assert fields["year"] in key
        assert {"title", "author", "year"} <= fields.keys()


def test_a_wide_table_is_turned_with_its_marks():
    sets = [f"a-long-test-set-{i}" for i in range(6)]
    rows = [[mode, "0.1", *(f"{i}.0 ± 0.1" for i in range(6))] for mode in ("none", "dense")]
    table = TextTable("wide", ["cl_mode", "temperature", *sets], rows, "", 2, {(1, 3): "best"})
    assert letters(table) > PAGE
    turned = fitted(table)
    assert turned == transposed(table)
    assert turned.head == ["", "none · 0.1", "dense · 0.1"]
    assert turned.rows[1] == [sets[1], "1.0 ± 0.1", "1.0 ± 0.1"]
    assert turned.marks == {(1, 2): "best"}
    narrow = TextTable("narrow", ["cell", "val"], [["none", "1.0"]])
    assert fitted(narrow) is narrow


def test_a_name_of_no_value_is_a_mistake(sweep, capsys):
    plan = sweep(*GRID[:2])
    file = plan.spec.file
    file.write_text(file.read_text() + "\nnames: {denze: ours}\n")
    assert main_sweep(["plan", str(file)]) == 2
    assert "names: denze: is no value of an axis; did you mean 'dense'?" in capsys.readouterr().err
