"""Shared by the notebooks: read a sweep, and show sentences, tables and figures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from densevit.config.evaluation_names import CLEAN
from densevit.config.metrics import SMALLEST_EFFECT
from densevit.results.analysis import Findings, analyze
from densevit.results.figures.style import styled
from densevit.results.report import doubts
from densevit.results.report.document import Fold, Items, Paragraph, block_markdown
from densevit.results.report.figures import CURVES
from densevit.results.report.summary import question
from densevit.results.report.write import FEW_CELLS, MOST_CELLS
from densevit.results.stats.reference_models import read_references
from densevit.results.tables.table import TextTable, to_markdown
from densevit.runs.directory import outputs_root
from densevit.sweep.plan import make_plan
from densevit.utils.escape import markdown

REPOSITORY = Path(__file__).resolve().parents[1]
# IPython warns that progress bars are not available; none is shown here.
warnings.filterwarnings("ignore", message="IProgress not found")

Thing = TextTable | Figure | Paragraph | Items | Fold | str


def open_sweep(sweep: str) -> Findings:
    """Return the results of a sweep's finished runs, and show its question and the missing runs.

    The file and the outputs ($DENSEVIT_OUTPUTS, else `outputs`) are relative to the repository,
    wherever Jupyter was started.

    Errors: `UserError` for a mistake in the sweep file.
    """
    outputs = Path(os.environ.get("DENSEVIT_OUTPUTS") or "outputs").expanduser()
    plan = make_plan(REPOSITORY / Path(sweep).expanduser(), outputs_root(str(REPOSITORY / outputs)))
    most = MOST_CELLS if len(plan.grid.cells) <= MOST_CELLS else FEW_CELLS
    found = analyze(plan, read_references(), SMALLEST_EFFECT, CURVES, most)
    asks = question(plan.spec.file) or plan.spec.description.strip()
    show(f"**{plan.name}**: {markdown(asks)}", Items(doubts.missing(found.coverage)))
    return found


def varied(found: Findings, *names: str) -> list[str]:
    """Return the names that are axes of the sweep; show a message if none is."""
    axes = [name for name in names if name in found.plan.axes]
    if not axes:
        *first, last = names
        listed = f"{', '.join(first)} or {last}" if first else last
        show(f"This sweep does not vary {listed}: nothing to show.")
    return axes


def of_axes(found: Findings, axes: Sequence[str]) -> Findings:
    """Return the findings with the effects of these axes alone, and the flips that involve them.

    Show a message if there are no effects.
    """
    effects, flips = found.marginals, found.flips
    if len(effects):
        effects = effects[effects["axis"].isin(axes)]
    if effects.empty:
        show("Nothing to average: the sweep has no other axis, or too few runs are finished.")
    if len(flips):
        flips = flips[flips["axis"].isin(axes) | flips["other"].isin(axes)]
    return replace(found, marginals=effects, flips=flips)


def two_sets(found: Findings) -> list[str]:
    """Return the first clean test set and the first shifted one, among those with results."""
    measured = set(found.frame["benchmark"])
    return [*[name for name in CLEAN if name in measured][:1], *found.shifted[:1]]


def show(*things: Thing | None) -> None:
    """Display each: text as Markdown, a table under its title, a figure as in the report."""
    for thing in things:
        if isinstance(thing, Figure):
            display(_image(thing))
        elif isinstance(thing, Fold):
            titled = any(isinstance(b, TextTable) and b.title == thing.title for b in thing.blocks)
            head = f"**{markdown(thing.title)}** {markdown(thing.note)}"
            show("" if titled else head, *thing.blocks)
        elif thing and (text := _text(thing)):
            display(Markdown(text))


def _text(thing: TextTable | Paragraph | Items | str) -> str:
    if isinstance(thing, TextTable):
        return f"**{markdown(thing.title)}**\n\n" + (
            to_markdown(thing) if thing.rows else "No rows yet."
        )
    return thing if isinstance(thing, str) else block_markdown(thing)


def _image(figure: Figure) -> Image:
    """Return a PNG shown at half its print resolution, so that it is sharp on dense screens."""
    png = io.BytesIO()
    with styled():
        figure.savefig(png, format="png")
    return Image(png.getvalue(), format="png", retina=True)
