import re
import shutil
import subprocess

import pytest

from densevit.results.tables.latex import escaped, to_latex
from densevit.results.tables.table import TextTable

NASTY = [
    r"\ { } & % $ # _ ~ ^", r"100 % of a_b & c#d", r"\input{x}", r"$x^2$ ~ {", "<a|b>", '"q"',
    "`tick' and ''two''", "--- dashes -- here", "-1.5 [-2.0, -1.0]", "71.2 ± 0.8 × 3 · 4",
    "– — − ≤ ≥ ≠ ≈ → ↑ ∞ † ‡ … ° ²", "α β γ ε λ μ µ π σ τ", "é ü ß ñ Å", "%", "&", "\\", "\\\\",
    "[opt] at the start", "* star at the start", "a\nb\tc", "", "?` !` <<x>> ,,y", "~", "^^41",
]  # fmt: skip
TABLE = TextTable(
    "100 % of nasty_texts & more",
    ["[cell", "value_1", "50 %"],
    [[text, text, text] for text in NASTY],
    note="Note: 5 % of a_b; † tied.",
    marks={(0, 1): "best", (1, 1): "tied", (8, 2): "best"},
)


def rows_of(latex):
    """Return the cells of each row, split where LaTeX would split them."""
    lines = latex[latex.index(r"\toprule") : latex.index(r"\bottomrule")].splitlines()
    rows = [line.strip() for line in lines if line.rstrip().endswith(r"\\")]
    return [re.split(r"(?<!\\)&", row[: -len(r"\\")]) for row in rows]


def braces(text):
    """Return the depth of braces at the end; printed braces do not count."""
    depth = 0
    for token in re.findall(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0
    return depth


def test_the_structure_of_a_nasty_table():
    latex = to_latex(TABLE)
    assert braces(latex) == 0
    rows = rows_of(latex)
    assert len(rows) == 1 + len(NASTY)
    assert {len(row) for row in rows} == {3}
    assert all(braces(cell) == 0 for row in rows for cell in row)
    assert re.search(r"\\begin\{tabular\}\{@\{\}lrr@\{\}\}", latex)
    # a row that begins with a bracket or a star is no option of the row before
    assert not re.search(r"(\\\\|rule)\s*[\[*]", latex)
    # dollar signs that LaTeX interprets come in pairs, in every cell
    for cell in (cell for row in rows for cell in row):
        assert len(re.findall(r"(?<!\\)\$", cell)) % 2 == 0
    # and no percent sign comments out the rest of a line, except in the first line
    assert not re.search(r"(?<!\\)%", latex.split("\n", 1)[1])


def test_a_simple_table_to_the_letter():
    sheet = TextTable(
        "top-1 accuracy (%)", ["cl_mode", "val"], [["none", "71.2 ± 0.8"], ["dense", "-0.4"]],
        marks={(0, 1): "best", (1, 1): "tied"},
    )  # fmt: skip
    assert to_latex(sheet) == "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}",
            r"  \centering",
            r"  \caption{Top-1 accuracy (\%)}",
            r"  \begin{tabular}{@{}lr@{}}",
            r"    \toprule",
            r"    cl\_mode & val \\",
            r"    \midrule",
            r"    none & \textbf{71.2 $\pm$ 0.8} \\",
            r"    dense & $-$0.4\rlap{$^\dagger$} \\",
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-1.5 [-2.0, 1e-05]", "$-$1.5 [$-$2.0, 1e-05]"),
        ("vit-tiny --x ,,y", "vit-tiny -{}-x ,{},y"),
        (r"\a{b}", r"\textbackslash{}a\{b\}"),
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        (" two\n lines ", "two lines"),
    ],
)
def test_what_is_printed_as_it_is(text, wanted):
    assert escaped(text) == wanted


def test_a_name_keeps_its_capitals():
    assert r"\caption{mIoU (\%)}" in to_latex(TextTable("mIoU (%)", ["a"], []))


def test_it_compiles(tmp_path):
    tex = next((name for name in ("pdflatex", "tectonic") if shutil.which(name)), None)
    if tex is None:
        pytest.skip("no TeX is installed (pdflatex, tectonic)")
    simple = TextTable("Plain", ["cell", "val"], [["a", "1"]])
    file = tmp_path / "paper.tex"
    file.write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n"
        f"\\begin{{document}}\n{to_latex(TABLE)}\n{to_latex(simple)}\n\\end{{document}}\n"
    )
    # Only TeX's errors count: a draft needs no fonts.
    flags = (
        ["-draftmode", "-interaction=nonstopmode", "-halt-on-error"] if tex == "pdflatex" else []
    )
    done = subprocess.run(
        [tex, *flags, file.name], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-500:]
