"""One nasty text as a name, a path, a description and a message of a sweep, in every output."""

import ast
import csv
import io
import json
import re
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.text import Text
from webpage import check

import densevit
from densevit.cli.main import main_sweep
from densevit.config.identity import SCHEMA_VERSION
from densevit.results.collect.numbers import collect
from densevit.results.figures.accuracy import accuracy
from densevit.results.figures.style import literal
from densevit.results.report.write import write
from densevit.results.tables.best_cells import marked_table
from densevit.results.tables.latex import to_latex
from densevit.results.tables.main_table import cell_table
from densevit.results.tables.table import TextTable, frame_to_csv, to_csv
from densevit.sweep.plan import make_plan
from densevit.utils.files import write_json

NASTY = (
    "\"><script>alert(1)</script>|$x_1$\\input{/etc/passwd}%#&~^{}=cmd|' /C calc'!A0"
    "\x1b]0;x\x07\x1b[2J\u202e\r\n# h\r\n[a](javascript:b) <b onload=c> &lt; `d` *e* _f_ g\x9b\x00"
)
IN_A_PATH = NASTY.replace("\x00", "")
FORMULA = "=cmd|' /C calc'!A0"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A sweep of finished runs and a failed one; every text in it that may be nasty is."""
    folder = tmp_path_factory.mktemp("nasty")
    weights = folder / IN_A_PATH / "w.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    record = {
        "name": "nasty", "description": NASTY, "seeds": [0, 1],
        "fixed": {"dataset": "shapes", "model_kwargs": {"img_size": 32, "patch_size": 4}},
        "grid": {"cl_mode": ["none", "dense"], "init_checkpoint": [None, str(weights)]},
        "baseline": {"cl_mode": "none"},
        "exclude": [{"where": {"cl_mode": "dense", "init_checkpoint": None}, "because": NASTY}],
    }  # fmt: skip
    # YAML refuses control characters outside of quotes.
    question = re.sub(r"[\x00\x07\x1b\x9b]", "", " ".join(NASTY.split()))
    file = folder / "nasty.yaml"
    file.write_text(f"# Question: {question}\n{json.dumps(record)}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("x_1", "$x_1")  # a path is expanded once
        yield _finished(make_plan(file, folder / "outputs"))


def _finished(plan):
    for number, run in enumerate(plan.runs):
        folder = plan.run_folder(run)
        ids = folder.create(run.config)
        results = {"run": ids.run, "cell": ids.cell, "seed": run.seed, "epochs": 10}
        tops = {"val": 60.0 + number, NASTY: 40.0 + number, FORMULA: 30.0}
        results["benchmarks"] = {name: {"top1": top1, "n": 500} for name, top1 in tops.items()}
        write_json(folder.results_file, results | {"schema_version": SCHEMA_VERSION})
        start = {"time": 1.0, "host": NASTY, "git_sha": NASTY, "versions": {"torch": NASTY}}
        write_json(folder.provenance_file, {"starts": [start]})
        write_json(folder.fingerprint_file, {"benchmarks": {NASTY: {"images": 1}}})
        folder.write_status("finished", epoch=10, epochs=10)
    folder.results_file.unlink()
    folder.write_status("failed", message=NASTY, cause="code")
    folder.log_file.write_bytes(f"first\n{NASTY}\nlast".encode() + b"\xff\n")
    return plan


@pytest.fixture(scope="module")
def report(nasty):
    """The folder of its report, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densevit.results.report.figures.draw_all", lambda *_: {})
        return write(nasty).folder


def acting(text):
    """Return the characters of a text that a terminal obeys, apart from newlines."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl")} - {"\n"}


def test_the_page_has_no_element_or_attribute_of_a_text(report):
    text = (report / "report.html").read_text()
    read = check(text)  # no script, no handler, no address
    assert acting(text) == set()
    shown = re.sub(r"\s+", " ", " ".join(e["text"] for e in read.all("p")))
    assert '"><script>alert(1)</script>|$x_1$\\input{/etc/passwd}' in shown
    assert read.all("b") == []
    assert len(read.all("h1")) == 1


def test_the_short_form_has_no_markup_of_a_text(report):
    text = (report / "report.md").read_text()
    assert acting(text) == set()
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    inside = [child for token in tokens for child in token.children or []]
    kinds = {token.type for token in [*tokens, *inside]}
    unwanted = {
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "code_inline",
        "fence",
        "em_open",
    }
    assert not kinds & {*unwanted, "s_open", "hr"}
    heads = [token for token in tokens if token.type == "heading_open"]
    assert [token.tag for token in heads] == ["h1"] + ["h2"] * (len(heads) - 1)
    for table in (text, (report / "table.md").read_text()):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len(rows) > 4
        cut = [re.split(r"(?<!\\)(?:\\\\)*\|", row) for row in rows]
        rule = [n for n, row in enumerate(rows) if re.fullmatch(r"[|: -]+", row)]
        for first, last in zip(rule, [*rule[1:], len(rows) + 1], strict=True):
            assert len({len(row) for row in cut[first - 1 : last - 1]}) == 1
    lead = next(token for token in tokens if token.type == "inline" and "alert" in token.content)
    assert "".join(c.content for c in lead.children).startswith('"><script>alert(1)</script>|$x_1$')


def test_no_cell_of_a_csv_file_is_a_formula_and_numbers_stay_numbers(report):
    for name in ("table.csv", "differences.csv", "intervals.csv"):
        text = (report / name).read_text()
        assert acting(text) == set()
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        assert f"'{FORMULA}" in "".join(map("\0".join, rows))
        for cell in (cell for row in rows for cell in row):
            assert cell[:1] not in tuple("=+-@\t\r") or float(cell) is not None
    frame = pd.DataFrame({"-a": [-1.5, 2.0], "b": ["-1e-3", "-1+cmd|x"], "c": [4096, None]})
    frame["d"] = pd.Series([1, None], dtype=object)
    assert frame_to_csv(frame) == "'-a,b,c,d\n-1.5,-1e-3,4096.0,1\n2.0,'-1+cmd|x,,\n"
    texts = TextTable("", ["=a"], [["+1.0 [-0.5, 1.5]"], ["@x"], [" =x"], ["\t-x"], ["−1"]])
    assert to_csv(texts).splitlines() == [
        "'=a", '"+1.0 [-0.5, 1.5]"', "'@x", "' =x", "'        -x", "−1",
    ]  # fmt: skip


def test_latex_reads_no_command_of_a_text(nasty):
    frame = collect(nasty)
    latex = to_latex(marked_table(cell_table(nasty, frame), frame))
    assert acting(latex) == set()
    rows = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")].splitlines()
    rows = [row.strip()[:-2] for row in rows if row.endswith(r"\\")]
    # Without the known symbols, which are formulas.
    rows = [re.sub(r"(?<!\\)\$(?:\\[a-z]+|-|\^\\d?dagger)\$", "", row) for row in rows]
    tokens = [re.findall(r"\\[a-zA-Z]+|\\.|.", row) for row in rows]
    assert len({row.count("&") for row in tokens}) == 1
    used = {token for row in tokens for token in row}
    assert not used & {*"$%#~^_\ufffd", "\\input"}
    assert r"\textbackslash{}input\{/etc/passwd\}\%\#\&" in rows[0]


def test_a_terminal_obeys_nothing(nasty, capsys, no_figures):
    file, failed = str(nasty.spec.file), nasty.runs[-1].id
    outputs = ["--outputs", str(nasty.outputs)]
    for words in (
        ["plan", file], ["status", file], ["explain", file, failed], ["logs", file, failed],
        ["logs", file, "--failed"], ["report", file], ["report", file, "--format", "md"],
        ["report", file, "--format", "csv"], ["report", file, "--format", "tex"],
        ["report", file, "--metric", IN_A_PATH], ["plan", f"{file}{IN_A_PATH}"],
    ):  # fmt: skip
        code = main_sweep([*words, *outputs])
        read = capsys.readouterr()
        assert code in ((2,) if IN_A_PATH in "".join(words) else (0,)), read.err
        assert acting(read.out + read.err) == set(), words
        assert "alert(1)" in read.out + read.err, words
        assert "Traceback" not in read.err


def test_figures_draw_a_text_as_it_is(nasty):
    frame = collect(nasty)
    figure = accuracy(cell_table(nasty, frame), frame)
    figure.canvas.draw()
    texts = figure.findobj(Text)
    drawn = [text._preprocess_math(text.get_text()) for text in texts if text.get_text()]
    assert not any(math for text, math in drawn if "script" in text or "x_1" in text)
    joined = "".join(text.replace("\n", "") for text, _ in drawn)
    assert "|$x_1$\\input{/etc/passwd}%#&~^{}=cmd|" in joined
    assert acting("".join(text for text, _ in drawn)) == set()
    assert literal("a\\$b\x1b") == "a\\\\$b\ufffd"


def test_what_a_loader_refuses_needs_no_escape(nasty, tmp_path):
    """Names of sweeps and test sets become names of files and jobs: they are plain words."""
    record = json.loads(Path(nasty.spec.file).read_text().partition("\n")[2])
    for change in ({"name": NASTY}, {"fixed": {"benchmarks": {NASTY: "x"}}}, {"grid": {NASTY: [1]}},
                   {"fixed": {"probes": [NASTY]}}, {"fixed": {"experiment_name": NASTY}}):  # fmt: skip
        file = tmp_path / "refused.yaml"
        file.write_text(json.dumps({**record, **change}))
        assert main_sweep(["plan", str(file)]) == 2


def test_the_package_prints_through_one_function():
    """Else a new line of a command would send a name to the terminal as it is."""
    root = Path(densevit.__file__).parent
    loose = []
    for file in root.rglob("*.py"):
        source = file.read_text()
        for node in ast.walk(ast.parse(source)) if "print(" in source else ():
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "print":
                continue
            names = {getattr(n.func, "id", "") for n in ast.walk(node) if isinstance(n, ast.Call)}
            into_file = {k.arg for k in node.keywords if k.arg == "file"}
            text = node.args[0]
            constant = isinstance(text, ast.Constant) or (not file.match("*/cli/*") and into_file)
            if "visible" not in names and not constant:
                loose.append(f"{file.relative_to(root)}:{node.lineno}")
    assert loose == []
