"""The command `densevit-sweep report` on made-up sweeps."""

import csv
import io

import pytest
from webpage import check

from densevit.cli.sweep import main_sweep
from densevit.sweep.plan_record import plan_record
from densevit.utils.files import read_json, write_json

GRID = ["grid: {cl_mode: [none, dense], temperature: [0.1, 0.2]}", "seeds: 3",
        "baseline: {cl_mode: none}"]  # fmt: skip


@pytest.fixture
def plan(sweep, finish_all):
    plan = sweep(*GRID)
    finish_all(plan)
    return plan


@pytest.fixture
def call(capsys):
    """Return a function that calls the command and returns its exit code, output and errors."""

    def report(plan, *options):
        capsys.readouterr()
        given = ["report", str(plan.spec.file), "--outputs", str(plan.outputs), *options]
        try:
            code = main_sweep(given)
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return report


def test_it_prints_table_answer_and_places(sweep, finish_all, call):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2", GRID[-1])
    finish_all(plan, ["val", "shapes-sketch"])
    code, out, _ = call(plan)
    assert code == 0
    assert "shapes-sketch" in out
    assert "Established: no difference (2 comparisons with the baseline, 2 seeds)." in out
    folder = plan.folder / "report"
    for name in ("report.html", "report.md", "table.md", "accuracy.png"):
        assert str(folder / name) in out
        assert (folder / name).is_file()
    assert (folder / "differences.csv").is_file()


def test_outputs_that_cannot_be_written_still_give_the_answer(
    sweep, finish_all, call, no_figures, tmp_path, monkeypatch
):
    plan = sweep("grid: {cl_mode: [none, dense]}", "seeds: 2", GRID[-1])
    finish_all(plan, ["val"])
    # A file is in the way: the superuser, too, cannot write there.
    plan.folder.parent.mkdir(parents=True)
    plan.folder.write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, errors = call(plan)
    assert code == 0, errors
    assert "dense" in out
    assert "Established: no difference" in out
    (folder,) = tmp_path.glob("made_up-report-*")
    assert errors == f"{plan.folder}/report: Not a directory; the report is in {folder} instead\n"
    assert f"report  {folder}/report.html" in out
    assert (folder / "report.html").is_file()


def test_a_table_alone(plan, call):
    code, out, _ = call(plan, "--format", "md")
    assert code == 0
    assert out == _table(plan)
    assert not (plan.folder / "report").exists()
    rows = list(csv.DictReader(io.StringIO(call(plan, "--format", "csv")[1])))
    assert {row["cl_mode"] for row in rows} == {"none", "dense"}
    assert float(rows[0]["val_mean"])
    assert r"\toprule" in call(plan, "--format", "tex")[1]


def _table(plan):
    from densevit.results.collect.numbers import collect
    from densevit.results.tables.best_cells import marked_table
    from densevit.results.tables.main_table import cell_table
    from densevit.results.tables.table import to_markdown

    frame = collect(plan)
    return to_markdown(marked_table(cell_table(plan, frame), frame))


@pytest.mark.usefixtures("no_figures")
def test_a_table_of_other_axes(plan, call):
    code, out, _ = call(
        plan, "--rows", "temperature", "--cols", "benchmark,cl_mode", "--format", "md"
    )
    assert code == 0
    assert out.startswith("| temperature |")
    assert len(out.splitlines()) >= 4
    code, out, _ = call(plan, "--rows", "temperature", "--metric", "nll")
    assert code == 0
    assert "NLL" in out
    assert (plan.folder / "report" / "report.html").is_file()


@pytest.mark.usefixtures("no_figures")
def test_the_page_and_where_it_is(plan, call):
    code, out, _ = call(plan, "--format", "html")
    assert code == 0
    check((plan.folder / "report" / "report.html").read_text())
    assert out == f"{plan.folder / 'report' / 'report.html'}\n"
    assert 'id="asked"' not in (plan.folder / "report" / "report.html").read_text()
    view = ["--rows", "temperature", "--cols", "cl_mode"]
    assert call(plan, "--format", "html", *view)[1] == out
    page = (plan.folder / "report" / "report.html").read_text()
    check(page)
    _, _, section = page.partition('id="asked"')
    assert '<th scope="col">temperature</th>' in section.partition("</section>")[0]


@pytest.mark.usefixtures("no_figures")
def test_frozen_numbers_that_move(plan, call):
    code, out, err = call(plan, "--freeze", "paper", "--format", "csv")
    assert code == 0
    assert err.startswith("frozen ")
    assert out == call(plan, "--format", "csv")[1]  # a table that goes into a file is a table
    assert "frozen as paper: No number has changed" in call(plan)[1]
    file = plan.run_folder(plan.runs[0]).results_file
    results = read_json(file)
    results["benchmarks"]["val"]["top1"] += 1.0
    write_json(file, results)
    code, out, _ = call(plan)
    assert code == 0
    assert "frozen as paper: 1 of " in out
    page = (plan.folder / "report" / "report.html").read_text()
    assert plan.runs[0].id in page.partition('id="plan"')[0]
    code, _, err = call(plan, "--freeze", "paper")
    assert code == 2
    assert "paper" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "temprature"], "temperature"),
        (["--metric", "top2", "--format", "md"], "top5"),
        (["--difference", "0"], "above 0"),
        (["--difference", "x"], "above 0"),
        (["--format", "pdf"], "html"),
        (["--format", "html", "--tracking-uri", "x"], "--tracking-uri: cannot be used"),
        (["--format", "csv", "--difference", "2"], "--difference: cannot be used"),
        (["--freeze", ""], "--freeze"),
        (["--rows", ""], "--rows"),
        (["--metric", ""], "--metric"),
        (["--tracking-uri", ""], "found none"),
    ],
)
def test_mistakes_are_told_in_a_line(plan, call, options, message):
    code, out, err = call(plan, *options)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("no_figures")
def test_the_wanted_difference_is_the_users(plan, call):
    assert "30.0 points" in call(plan, "--difference", "30")[1]


def test_finished_runs_that_the_plan_has_lost_are_in_the_report(
    sweep, finish_all, call, no_figures
):
    first = sweep("grid: {temperature: [0.1, 0.2]}")
    finish_all(first, ["val"])
    write_json(first.folder / "plan.json", plan_record(first, first.statuses()))
    plan = sweep("grid: {temperature: [0.2, 0.3]}")
    told = "Not in this plan: 1 finished run of earlier plans of this sweep (0.1, seed 0)."
    assert told in call(plan)[1]
    assert told in (plan.folder / "report" / "report.md").read_text()
