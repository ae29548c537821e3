"""What the notebooks share: a sweep is looked at, and sentences, tables and figures are shown."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from densevit.data.names import CLEAN
from densevit.results import words
from densevit.results.answer import question
from densevit.results.document import Fold, Items, Paragraph
from densevit.results.drawings import CURVES
from densevit.results.figures.style import styled
from densevit.results.findings import Findings, look
from densevit.results.report import FEW_CELLS, MOST_CELLS
from densevit.results.robustness import read_references
from densevit.results.sheet import Sheet, to_markdown
from densevit.rundir import outputs_root
from densevit.sweep.outcome import WANTED
from densevit.sweep.plan import make_plan

REPOSITORY = Path(__file__).resolve().parents[1]
# Of a library that would show progress bars, of which there are none here.
warnings.filterwarnings("ignore", message="IProgress not found")

Thing = Sheet | Figure | Paragraph | Items | Fold | str


def open_sweep(sweep: str, wanted: float = WANTED) -> Findings:
    """What the report of a sweep knows of it, from the runs that are finished now; says which are.

    The file, and the outputs ($DENSEVIT_OUTPUTS, else `outputs`), are looked for from the
    repository, wherever Jupyter was started. `wanted`: points of accuracy that matter.

    Errors: `UserError` for a sweep file with a mistake in it.
    """
    outputs = Path(os.environ.get("DENSEVIT_OUTPUTS") or "outputs").expanduser()
    plan = make_plan(REPOSITORY / Path(sweep).expanduser(), outputs_root(str(REPOSITORY / outputs)))
    most = MOST_CELLS if len(plan.grid.cells) <= MOST_CELLS else FEW_CELLS
    found = look(plan, read_references(), wanted, CURVES, most)
    asked = question(plan.spec.file) or plan.spec.description.strip()
    show(f"**{plan.name}**: {asked}", Items(words.missing(found.coverage)))
    return found


def varied(found: Findings, *names: str) -> list[str]:
    """Those of the names that are axes of the sweep; says so if none is."""
    axes = [name for name in names if name in found.plan.axes]
    if not axes:
        *first, last = names
        told = f"{', '.join(first)} or {last}" if first else last
        show(f"This sweep does not vary {told}: nothing to show.")
    return axes


def of_axes(found: Findings, axes: Sequence[str]) -> Findings:
    """The same with the effects of these axes alone, and the conclusions that turn with them.

    Says so if there are no effects.
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
    """A clean test set and the first shifted one, of those that there are numbers of."""
    measured = set(found.frame["benchmark"])
    return [*[name for name in CLEAN if name in measured][:1], *found.shifted[:1]]


def show(*things: Thing | None) -> None:
    """Show each: text as it is, a table under its title, a figure as it stands in the report."""
    for thing in things:
        if isinstance(thing, Figure):
            display(_image(thing))
        elif isinstance(thing, Fold):
            told = any(isinstance(b, Sheet) and b.title == thing.title for b in thing.blocks)
            show("" if told else f"**{thing.title}** {thing.note}", *thing.blocks)
        elif thing and (text := _text(thing)):
            display(Markdown(text))


def _text(thing: Sheet | Paragraph | Items | str) -> str:
    if isinstance(thing, Sheet):
        return f"**{thing.title}**\n\n" + (to_markdown(thing) if thing.rows else "No rows yet.")
    if isinstance(thing, Items):
        return "\n".join(f"- {text}" for text in thing.texts)
    return thing.text if isinstance(thing, Paragraph) else thing


def _image(figure: Figure) -> Image:
    """At half the size of its pixels, which are those of print: sharp on dense screens too."""
    written = io.BytesIO()
    with styled():
        figure.savefig(written, format="png")
    return Image(written.getvalue(), format="png", retina=True)
