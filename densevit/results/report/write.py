"""Write the report of a sweep into one folder: page, short form, tables, figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from densevit.launch.run_state import RunState, read_states
from densevit.results.analysis import Findings, analyze
from densevit.results.report import document, figures, html, intervals, numbers, runs, sections
from densevit.results.report.document import Block, FigureBlock, Items, Paragraph
from densevit.results.report.provenance import provenance
from densevit.results.report.sections import Extras
from densevit.results.report.summary import conclusions, reasons_for_doubt
from densevit.results.stats.reference_models import read_references
from densevit.results.tables import frozen_changes, frozen_numbers
from densevit.results.tables.best_cells import marked_table
from densevit.results.tables.main_table import CellTable, cell_table
from densevit.results.tables.table import TextTable, frame_to_csv, to_csv, to_markdown
from densevit.runs.directory import run_folder
from densevit.sweep.earlier_plans import dropped_line
from densevit.sweep.plan import Plan
from densevit.utils.errors import UserError
from densevit.utils.files import write_atomic

MOST_MATCHES = 6  # figures of matches
MOST_CHANGES = 20  # lines on numbers that changed since they were frozen
# Tables and figures show up to MOST_CELLS cells, FEW_CELLS of a larger sweep. The files with all
# numbers hold every cell.
MOST_CELLS, FEW_CELLS = 40, 20


@dataclass(frozen=True)
class Report:
    """A report's folder, its main table, and its conclusions with the reasons to doubt them.

    `table` holds the cells that are shown: in a large sweep the most informative ones. `changes`
    states for each frozen name how many numbers have changed since. `found` and `shown` are what
    it was made from.
    """

    folder: Path
    table: TextTable
    conclusions: Sequence[str]
    changes: Mapping[str, str]
    found: Findings
    shown: CellTable


def write(
    plan: Plan,
    references: Path | None = None,
    smallest_effect: float = 1.0,
    requested: TextTable | None = None,
    states: Mapping[str, RunState] | None = None,
    folder: Path | None = None,
) -> Report:
    """Write the report of the current results into a folder (default: `plan.folder`/report).

    It may be called while the sweep runs, even before any run has finished: the report lists what
    is missing. The same results give the same bytes. `references`: see
    `reference_models.read_references`. `smallest_effect` is the smallest difference in points of
    accuracy that matters: a difference that is surely smaller counts as none; one that could be
    larger asks for more seeds. `requested` is a table that the user asked for; it follows the
    answer. `states` are the runs' states as a launcher knows them; without, those of the run
    directories.
    """
    models = read_references(references)
    most = MOST_CELLS if len(plan.grid.cells) <= MOST_CELLS else FEW_CELLS
    states = read_states(plan) if states is None else states
    found = analyze(plan, models, smallest_effect, figures.CURVES, most, states)
    folder = folder or plan.folder / "report"
    shown, note = numbers.shown_table(found, found.frame, found.metric)
    table = marked_table(shown, found.frame, note)
    _write_numbers(found, folder)
    changes = _changes(found)
    begun = found.coverage.loc[found.coverage["state"] != "pending", "run"]
    origins, lines = provenance(plan, list(begun)), conclusions(found)
    doubts = [*reasons_for_doubt(found), *runs.provenance_warnings(origins)]
    doubts += [line for line in [dropped_line(plan)] if line]
    extras = Extras(
        conclusions=lines,
        doubts=doubts,
        table=table,
        states=states,
        provenance=origins,
        figures=figures.draw_all(found, shown, folder),
        matches=_matches(found, folder),
        changes=changes,
        requested=requested,
    )
    report = sections.document(found, extras)
    write_atomic(folder / "report.md", document.to_markdown(report))
    write_atomic(folder / "report.html", html.to_html(report))
    totals = {name: _last_line(blocks[0]) for name, blocks in changes.items()}
    return Report(folder, table, [*lines, *doubts], totals, found, shown)


def _write_numbers(found: Findings, folder: Path) -> None:
    """Write the files that hold the numbers of every cell."""
    table = marked_table(cell_table(found.plan, found.frame, found.metric), found.frame)
    write_atomic(folder / "table.md", to_markdown(table))
    write_atomic(folder / "table.csv", to_csv(table))
    for name, rows in (
        ("differences.csv", intervals.of_differences(found)),
        ("intervals.csv", intervals.of_cells(found)),
    ):
        write_atomic(folder / name, frame_to_csv(rows))


def _changes(found: Findings) -> dict[str, list[Block]]:
    """Return, by name, the changes since numbers were frozen; the last line of each counts them."""
    blocks: dict[str, list[Block]] = {}
    for name in frozen_numbers.frozen(found.plan):
        try:
            changes = frozen_changes.changes_since(found.plan, found.frame, name)
        except UserError as error:  # a damaged file must not cost the rest of the report
            blocks[name] = [Paragraph(str(error))]
            continue
        *lines, total = changes.lines
        more = len(lines) - MOST_CHANGES
        lines = lines[:MOST_CHANGES] + ([f"and {more} more"] if more > 0 else []) + [total]
        blocks[name] = [Items(lines), *([changes.table] if changes.table else [])]
    return blocks


def _last_line(block: Block) -> str:
    return block.texts[-1] if isinstance(block, Items) else getattr(block, "text", "")


def _matches(found: Findings, folder: Path) -> list[tuple[str, FigureBlock]]:
    """Return matches before and after training, from each cell's first finished run if saved."""
    plan, coverage = found.plan, found.coverage
    finished = coverage[coverage["state"] == "finished"].drop_duplicates("cell")
    blocks: list[tuple[str, FigureBlock]] = []
    for row in finished.itertuples(index=False):
        if len(blocks) == MOST_MATCHES:
            break
        run = run_folder(plan.outputs, row.run)
        before, after = run.matches_file("before"), run.matches_file("after")
        if not (before.exists() and after.exists()):
            continue
        png, pdf = folder / f"matches-{row.run}.png", folder / f"matches-{row.run}.pdf"
        _draw_matches(before, after, png, pdf)
        caption = (
            "Lines join each patch of view 1 to the most similar patch of view 2, before (left) "
            "and after training (right). Wrong matches are drawn too."
        )
        alt = f"Matched patches of two views of val images, {row.label}, seed {row.seed}"
        image = html.embedded(png, photo=True)
        block = FigureBlock(png.name, *image, alt, caption, pdf.name)
        blocks.append((f"{row.label}, seed {row.seed}", block))
    return blocks


def _draw_matches(before: Path, after: Path, png: Path, pdf: Path) -> None:
    """Write the PNG and PDF unless they are up to date: a run's saved matches do not change."""
    newest = max(before.stat().st_mtime, after.stat().st_mtime)
    if all(file.exists() and file.stat().st_mtime >= newest for file in (png, pdf)):
        return
    from densevit.evaluate.correspondence_file import read_matches
    from densevit.results.figures.correspondence import draw_before_after

    draw_before_after(read_matches(before), read_matches(after), png, pdf)
