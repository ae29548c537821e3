"""Write the folder for a paper beside the report whose figures it copies."""

from __future__ import annotations

import shutil
from pathlib import Path

from densevit.results.analysis import Findings
from densevit.results.paper.methods import methods
from densevit.results.paper.sources import bibtex, used
from densevit.results.paper.tables import PAGE, letters, paper_tables
from densevit.results.report.figures import list_figures
from densevit.results.stats.ranking import image_rows
from densevit.results.tables.latex import escaped, to_latex
from densevit.results.tables.main_table import CellTable
from densevit.utils.files import write_atomic

_BEGIN = r"""\documentclass{article}
\usepackage[margin=1in]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
"""
_END = r"""\bibliographystyle{plain}
\bibliography{references}
\end{document}
"""


def write_paper(found: Findings, shown: CellTable, report: Path) -> Path:
    """Write `report`/paper, which compiles with pdflatex and bibtex; return the folder.

    `shown` is the main table, `report` the folder of the report, from which figures are copied.
    """
    folder = report / "paper"
    benchmarks = list(dict.fromkeys(image_rows(found.frame)["benchmark"]))
    keys = used((run.config for run in found.plan.grid.cells), benchmarks)
    write_atomic(folder / "methods.tex", methods(found, benchmarks))
    write_atomic(folder / "references.bib", bibtex(keys))
    tables = paper_tables(found)
    for name, table in tables.items():
        text = to_latex(table, label=f"tab:{name}", narrowed=letters(table) > PAGE)
        write_atomic(folder / f"table-{name}.tex", text)
    parts = [_BEGIN, rf"\title{{{escaped(found.plan.name)}}}", r"\date{}", r"\maketitle"]
    parts += [r"\section{Methods}", r"\input{methods}", r"\section{Results}"]
    parts += [rf"\input{{table-{name}}}" for name in tables if name != "hyperparameters"]
    parts += _figures(found, shown, report, folder)
    parts += [r"\appendix", r"\section{Settings}", r"\input{table-hyperparameters}"]
    write_atomic(folder / "paper.tex", "\n".join([*parts, _END]))
    return folder


def _figures(found: Findings, shown: CellTable, report: Path, folder: Path) -> list[str]:
    """Copy the figures that the report has drawn; return the lines that include them."""
    lines = []
    for figure in list_figures(found, shown):
        drawn = report / f"{figure.name}.pdf"
        if not drawn.exists():
            continue
        shutil.copyfile(drawn, folder / drawn.name)
        lines += [
            r"\begin{figure}", r"  \centering",
            rf"  \includegraphics{{{drawn.name}}}",
            rf"  \caption{{{escaped(figure.caption)}}}", rf"  \label{{fig:{figure.name}}}",
            r"\end{figure}",
        ]  # fmt: skip
    return [*lines, r"\clearpage"]
