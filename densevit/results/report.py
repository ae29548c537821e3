"""The report of a sweep in one folder: a page, a short form, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from densevit.errors import UserError
from densevit.results import account, drawings, intervals, ledger, measures, page, sections, sheet
from densevit.results.answer import answers
from densevit.results.best import marked_sheet
from densevit.results.document import Block, Items, Paragraph, Picture, to_markdown
from densevit.results.findings import Findings, look
from densevit.results.reproduce import provenance
from densevit.results.robustness import read_references
from densevit.results.sections import Extras
from densevit.results.sheet import Sheet
from densevit.results.tables import CellTable, cell_table
from densevit.rundir import run_folder, write_atomic
from densevit.sweep.plan import Plan
from densevit.sweep.state import observe

MATCHES_SHOWN = 6
LINES_SHOWN = 20
# Cells up to which tables and figures show all, and how many they show of more; the files with all
# numbers have every cell.
MOST_CELLS, FEW_CELLS = 40, 20


@dataclass(frozen=True)
class Report:
    """Where the parts of a report lie, the table itself for showing it, and the answer's sentences.

    `table` has the cells that are shown: in a large sweep the most telling ones. `moved` says of
    each name under which numbers were frozen how many are others now.
    """

    report_html: Path
    report_md: Path
    table_md: Path
    table_csv: Path
    differences_csv: Path
    intervals_csv: Path
    figure_png: Path
    figure_pdf: Path
    table: Sheet
    answers: Sequence[str]
    moved: Mapping[str, str]


def write(
    plan: Plan, references: Path | None = None, wanted: float = 1.0, asked: Sheet | None = None
) -> Report:
    """Write the report of what is there now into `plan.folder`/report.

    It may be called while the sweep runs and before anything is finished: what is missing is
    told as missing. The same results give the same bytes. `references`: see
    `robustness.read_references`. `wanted` is the difference in points of accuracy that matters:
    what is surely smaller counts as none, and what could be larger asks for more seeds. `asked` is
    a table of the user's own, which follows the answer.
    """
    models = read_references(references)
    most = MOST_CELLS if len(plan.grid.cells) <= MOST_CELLS else FEW_CELLS
    found = look(plan, models, wanted, drawings.CURVES, most)
    folder = plan.folder / "report"
    table = cell_table(plan, found.frame)
    whole = marked_sheet(table, found.frame)
    shown, note = measures.shown_table(found, found.frame)
    part = marked_sheet(shown, found.frame, note)
    write_atomic(folder / "table.md", sheet.to_markdown(whole))
    write_atomic(folder / "table.csv", sheet.to_csv(whole))
    for name, numbers in (
        ("differences.csv", intervals.of_differences(found)),
        ("intervals.csv", intervals.of_cells(found)),
    ):
        write_atomic(folder / name, numbers.to_csv(index=False, lineterminator="\n"))
    moved = _moved(found)
    extras = _extras(found, shown, part, folder, moved)
    told = sections.document(found, replace(extras, asked=asked))
    write_atomic(folder / "report.md", to_markdown(told))
    write_atomic(folder / "report.html", page.to_html(told))
    return Report(
        report_html=folder / "report.html",
        report_md=folder / "report.md",
        table_md=folder / "table.md",
        table_csv=folder / "table.csv",
        differences_csv=folder / "differences.csv",
        intervals_csv=folder / "intervals.csv",
        figure_png=folder / "accuracy.png",
        figure_pdf=folder / "accuracy.pdf",
        table=part,
        answers=extras.answers,
        moved={name: _last(blocks[0]) for name, blocks in moved.items()},
    )


def _extras(
    found: Findings,
    shown: CellTable,
    part: Sheet,
    folder: Path,
    moved: Mapping[str, Sequence[Block]],
) -> Extras:
    """`part` is the sheet of `shown`."""
    plan, coverage = found.plan, found.coverage
    standings = {} if not (coverage["state"] == "failed").any() else observe(plan).runs
    begun = list(coverage.loc[coverage["state"] != "pending", "run"])
    origins = provenance(plan, begun)
    return Extras(
        answers=[*answers(found), *account.beware(origins)],
        shown=part,
        standings=standings,
        provenance=origins,
        pictures=drawings.draw_all(found, shown, folder),
        matches=_matches(found, folder),
        moved=moved,
    )


def _moved(found: Findings) -> dict[str, list[Block]]:
    """What has moved since numbers of the sweep were frozen, by name; the last line of each list
    counts the numbers."""
    blocks: dict[str, list[Block]] = {}
    for name in ledger.frozen(found.plan):
        try:
            told = ledger.moved(found.plan, found.frame, name)
        except UserError as error:  # a damaged file: the rest of the report is none the worse
            blocks[name] = [Paragraph(str(error))]
            continue
        *events, counted = told.lines
        more = len(events) - LINES_SHOWN
        lines = events[:LINES_SHOWN] + ([f"and {more} more"] if more > 0 else []) + [counted]
        blocks[name] = [Items(lines), *([told.sheet] if told.sheet else [])]
    return blocks


def _last(block: Block) -> str:
    return block.texts[-1] if isinstance(block, Items) else getattr(block, "text", "")


def _matches(found: Findings, folder: Path) -> list[tuple[str, Picture]]:
    """Before and after training, of the first finished run of each cell that kept them."""
    plan, coverage = found.plan, found.coverage
    finished = coverage[coverage["state"] == "finished"].drop_duplicates("cell")
    parts = []
    for row in finished.itertuples(index=False):
        if len(parts) == MATCHES_SHOWN:
            break
        run = run_folder(plan.outputs, row.run)
        files = [run.matches_file(when) for when in ("before", "after")]
        if not all(file.exists() for file in files):
            continue
        target = folder / f"matches-{row.run}.png"
        _draw_matches(files, target)
        caption = (
            "Each patch of view 1 with the patch of view 2 that is most like it, before (left) and "
            "after training (right); lines of wrong matches are drawn too."
        )
        alt = f"Matched patches of two views of val pictures, {row.label}, seed {row.seed}"
        image = page.embedded(target, photo=True)
        also = target.with_suffix(".pdf").name
        picture = Picture(target.name, *image, alt, caption, also)
        parts.append((f"{row.label}, seed {row.seed}", picture))
    return parts


def _draw_matches(files: list[Path], target: Path) -> None:
    """As PNG and PDF, drawn once: what a run keeps does not change."""
    targets = (target, target.with_suffix(".pdf"))
    newest = max(file.stat().st_mtime for file in files)
    if all(there.exists() and there.stat().st_mtime >= newest for there in targets):
        return
    from densevit.matchfile import read_matches
    from densevit.results.matches import draw_before_after

    draw_before_after(*(read_matches(file) for file in files), *targets)
