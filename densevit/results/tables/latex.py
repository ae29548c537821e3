"""Tables as LaTeX for papers, with booktabs rules."""

from __future__ import annotations

import re

from densevit.results.tables.table import Mark, TextTable
from densevit.utils.escape import MARK, visible

_PLAIN = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\symbol{34}",  # the character is a shorthand of babel in some languages
}  # fmt: skip
_SYMBOLS = {
    "±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "·": r"$\cdot$", "×": r"$\times$",
    "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "≈": r"$\approx$", "→": r"$\rightarrow$",
    "←": r"$\leftarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "∞": r"$\infty$",
    "†": r"$^\dagger$", "‡": r"$^\ddagger$", "…": r"\ldots{}", "°": r"$^\circ$", "²": "$^2$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\epsilon$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "µ": r"$\mu$", "π": r"$\pi$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip
_WRITTEN = _PLAIN | _SYMBOLS
# A minus sign before a number; a character that would form a ligature with the next; the rest.
_MINUS, _TWIN = r"(?<![^\s\[(])-(?=[\d.])", r"-(?=-)|,(?=,)"
_PARTS = re.compile(f"(?P<minus>{_MINUS})|(?P<twin>{_TWIN})|[{re.escape(''.join(_WRITTEN))}]")


def to_latex(table: TextTable, label: str = "", *, narrowed: bool = False) -> str:
    r"""Return a LaTeX `table` with the title as its caption and the note below it.

    It needs `\usepackage{booktabs}` and LaTeX 2020 or later. By `table.marks`, the best of a column
    is bold, and cells tied with it have a dagger. `label` is for `\ref`; `narrowed` shrinks the
    table to the width of the text, which needs `\usepackage{graphicx}`.

    Special characters are escaped, and known symbols become commands; letters of other scripts stay
    as they are and may need XeLaTeX or LuaLaTeX.
    """
    columns = "".join("l" if i < table.numeric_from else "r" for i in range(len(table.head)))
    rows = [
        [_emphasized(escaped(text), table.marks.get((i, j))) for j, text in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(_capitalized(table.title))}}}",
        *([f"  \\label{{{label}}}"] if label else []),
        *([r"  \resizebox{\linewidth}{!}{%"] if narrowed else []),
        f"  \\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"    \toprule",
        _line([escaped(text) for text in table.head]),
        r"    \midrule",
        *map(_line, rows),
        r"    \bottomrule",
        r"  \end{tabular}" + ("}" if narrowed else ""),
        *([f"  \\par\\smallskip{{\\footnotesize {escaped(table.note)}\\par}}"] * bool(table.note)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Return text that LaTeX prints as it is, on one line, with minus signs before numbers."""
    plain = visible(text).replace(MARK, "?")  # TeX has no such letter
    return _PARTS.sub(_written, " ".join(plain.split()))


def _written(found: re.Match[str]) -> str:
    if found["minus"]:
        return "$-$"
    return found[0] + "{}" if found["twin"] else _WRITTEN[found[0]]


def _capitalized(text: str) -> str:
    """Return a caption that begins with a capital letter, except for words like mIoU."""
    first = text.split(" ")[0]
    return text[:1].upper() + text[1:] if first == first.lower() else text


def _line(cells: list[str]) -> str:
    r"""Return a row; a bracket or star at its start would be read as an option of the last `\\`."""
    first = re.sub(r"^[\[*]", r"{\g<0>}", cells[0])
    return "    " + " & ".join([first, *cells[1:]]) + r" \\"


def _emphasized(text: str, mark: Mark | None) -> str:
    if mark == "tied":
        return text + r"\rlap{$^\dagger$}"  # zero width, so that digits stay aligned
    return f"\\textbf{{{text}}}" if mark == "best" else text
