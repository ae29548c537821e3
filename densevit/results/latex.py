"""Tables as LaTeX for papers, with the rules of booktabs."""

from __future__ import annotations

import re

from densevit.results.sheet import Mark, Sheet

_PLAIN = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\symbol{34}",  # babel gives the character itself a meaning in some languages
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
# A minus sign before a number; what would melt with the next into a dash or a quote; the rest.
_MINUS, _TWIN = r"(?<![^\s\[(])-(?=[\d.])", r"-(?=-)|,(?=,)"
_PARTS = re.compile(f"(?P<minus>{_MINUS})|(?P<twin>{_TWIN})|[{re.escape(''.join(_WRITTEN))}]")


def to_latex(sheet: Sheet, label: str = "") -> str:
    r"""A `table` with the title as its caption and the note below it.

    It needs `\usepackage{booktabs}` and a LaTeX of 2020 or later. `label` is for `\ref`. The best
    of a column is bold where `sheet.marks` says so, and what is tied with it has a dagger.

    What LaTeX gives a meaning is escaped, and symbols of ours become commands; letters of other
    scripts are written as they are, for which XeLaTeX or LuaLaTeX may be needed.
    """
    columns = "".join("l" if i < sheet.numeric_from else "r" for i in range(len(sheet.head)))
    rows = [
        [_emphasised(escaped(text), sheet.marks.get((i, j))) for j, text in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(_begun(sheet.title))}}}",
        *([f"  \\label{{{label}}}"] if label else []),
        f"  \\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"    \toprule",
        _line([escaped(text) for text in sheet.head]),
        r"    \midrule",
        *map(_line, rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *([f"  \\par\\smallskip{{\\footnotesize {escaped(sheet.note)}\\par}}"] * bool(sheet.note)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, on one line, with numbers' minus signs as such."""
    return _PARTS.sub(_written, " ".join(text.split()))


def _written(found: re.Match[str]) -> str:
    if found["minus"]:
        return "$-$"
    return found[0] + "{}" if found["twin"] else _WRITTEN[found[0]]


def _begun(text: str) -> str:
    """A caption begins with a capital letter, but for words like mIoU."""
    first = text.split(" ")[0]
    return text[:1].upper() + text[1:] if first == first.lower() else text


def _line(cells: list[str]) -> str:
    r"""A row; a bracket or a star at its beginning would be an option of the `\\` before it."""
    first = re.sub(r"^[\[*]", r"{\g<0>}", cells[0])
    return "    " + " & ".join([first, *cells[1:]]) + r" \\"


def _emphasised(text: str, mark: Mark | None) -> str:
    if mark == "tied":
        return text + r"\rlap{$^\dagger$}"  # beside the column, so that digits stay in line
    return f"\\textbf{{{text}}}" if mark == "best" else text
