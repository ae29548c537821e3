"""The figures of a report with their captions; drawn again only where numbers have changed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.backends.backend_pdf  # once, before there is a process beside this one
import pandas as pd
from matplotlib.figure import Figure

from densevit.data.names import CLEAN
from densevit.errors import UserError
from densevit.results import page
from densevit.results.document import Picture
from densevit.results.figures.accuracy import accuracy
from densevit.results.figures.cost import cost
from densevit.results.figures.curves import learning_curves
from densevit.results.figures.forest import forest
from densevit.results.figures.health import HEALTH, health
from densevit.results.figures.heat import heat
from densevit.results.figures.marginal import marginal
from densevit.results.figures.shift import shift
from densevit.results.figures.style import save
from densevit.results.findings import Findings, leveled_axes
from densevit.results.tables import CellTable
from densevit.rundir import read_json, write_atomic, write_json

CURVES = ("val/top1", "train/loss", *HEALTH)
MOST_SHIFTED = 6  # test sets in a figure
KEPT = "drawn.json"  # name of a figure to a digest of what it was drawn from
PATIENCE = 120.0  # seconds for the process beside this one
Files = tuple[Path, Path, Path]


class Drawing(NamedTuple):
    """A figure of a report: `inputs` are all that `draw` draws from."""

    section: str
    name: str
    alt: str
    caption: str
    draw: Callable[..., Figure | None]
    inputs: Sequence[Any]
    options: Mapping[str, Any] = {}


def draw_all(found: Findings, shown: CellTable, folder: Path) -> dict[str, list[Picture]]:
    """Draw every figure that there is something to draw of, as PNG and PDF in the folder, and give
    them by the section they belong to."""
    with _kept(found.plan.folder / "cache" / "figures") as kept:
        return _draw_all(found, shown, folder, kept)


@contextmanager
def _kept(folder: Path) -> Iterator[Path]:
    """The folder, or one for now where that cannot be: what is kept is for speed alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        with TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    yield folder


def _draw_all(
    found: Findings, shown: CellTable, folder: Path, kept: Path
) -> dict[str, list[Picture]]:
    before, drawings = _known(kept / KEPT), list(_drawings(found, shown))
    after = {drawing.name: _digest(drawing) for drawing in drawings}
    to_save: list[tuple[Figure, Files]] = []
    for drawing in drawings:
        files = _files(folder, kept, drawing.name)
        if before.get(drawing.name) == after[drawing.name] and all(f.exists() for f in files):
            continue
        figure = drawing.draw(*drawing.inputs, **drawing.options)
        if figure is None:
            del after[drawing.name]
        else:
            to_save.append((figure, files))
    save_all(to_save)
    for name in before.keys() - after.keys():  # of which there is nothing to draw any more
        for file in _files(folder, kept, name):
            file.unlink(missing_ok=True)
    if after != before:
        write_json(kept / KEPT, after)
    pictures: dict[str, list[Picture]] = {}
    for drawing in drawings:
        if drawing.name in after:
            png, pdf, screen = _files(folder, kept, drawing.name)
            image = (screen.read_bytes(), *page.size(screen))
            picture = Picture(png.name, *image, drawing.alt, drawing.caption, pdf.name)
            pictures.setdefault(drawing.section, []).append(picture)
    return pictures


def _files(folder: Path, kept: Path, name: str) -> Files:
    """PNG, PDF, and the image as a page holds it, which is kept."""
    return folder / f"{name}.png", folder / f"{name}.pdf", kept / f"{name}.png"


def save_all(figures: Sequence[tuple[Figure, Files]]) -> None:
    """Write figures, half of them in a process beside this one where there is a second core."""
    apart = []
    if len(figures) > 2 and len(os.sched_getaffinity(0)) > 1:
        # A copy of this process has the figures without sending them; it does nothing but write.
        beside = multiprocessing.get_context("fork").Process(
            target=_save_each, args=(figures[1::2],)
        )
        beside.start()
        _save_each(figures[::2])
        beside.join(PATIENCE)
        if beside.exitcode != 0:  # whatever it was: this process can do it too
            beside.kill()
            apart = figures[1::2]
    else:
        apart = figures
    _save_each(apart)


def _save_each(figures: Sequence[tuple[Figure, Files]]) -> None:
    for figure, (png, pdf, screen) in figures:
        save(figure, png, pdf)
        write_atomic(screen, page.embedded(png)[0])


def _known(file: Path) -> dict[str, Any]:
    try:
        return read_json(file) or {}
    except UserError:
        return {}


def _digest(drawing: Drawing) -> str:
    """Of all that the figure is drawn from, and of what draws it."""
    digest = hashlib.sha256(_code().encode())
    for part in (*drawing.inputs, sorted(drawing.options.items())):
        digest.update(_bytes(part))
    return digest.hexdigest()[:16]


def _bytes(part: Any) -> bytes:
    if isinstance(part, pd.DataFrame):
        return part.to_csv(index=False, float_format="%.12g").encode()
    if isinstance(part, CellTable):
        return repr((part.metric, part.axes, part.benchmarks)).encode() + _bytes(part.data)
    return repr(part).encode()


@cache
def _code() -> str:
    """A figure that was drawn by other code is another one."""
    folder = Path(__file__).parent
    files = [*sorted((folder / "figures").glob("*.py")), Path(page.__file__)]
    digest = hashlib.sha256(mpl.__version__.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _drawings(found: Findings, shown: CellTable) -> Iterator[Drawing]:
    """Every figure, of the cells that are shown."""
    ids = set(found.shown)
    cells = found.cells[found.cells["cell"].isin(ids)].reset_index(drop=True)
    frame = found.frame[found.frame["cell"].isin(ids)]
    yield Drawing(
        "accuracy", "accuracy", "Mean accuracy of each cell on each test set, with single seeds.",
        "Top-1 accuracy. Marker: mean; bar: ± standard deviation over the seeds; small dots: "
        "single seeds. The axis need not start at zero.",
        accuracy, (shown, frame[frame["metric"] == "top1"]),
    )  # fmt: skip
    differences = found.differences[found.differences["cell"].isin(ids)]
    # What all of them have in common need not stand beside every row.
    names = dict(found.names) if len(found.plan.axes) == 1 else None
    yield Drawing(
        "differences", "differences", "Each cell's difference to its baseline on each test set, "
        "with intervals; the numbers are in the table above.",
        "Difference in top-1 accuracy to the baseline, paired by seed. Bar: 95 % t interval; "
        f"filled: decided; shaded: up to {found.wanted:g} either way.",
        forest, (differences, cells),
        {"wanted": found.wanted, "names": names},
    )  # fmt: skip
    yield from _effects(found)
    yield from _robustness(found, frame, cells)
    yield from _courses(found, cells)
    costs = found.costs[found.costs["cell"].isin(ids)]
    clean = frame[(frame["metric"] == "top1") & frame["benchmark"].isin(CLEAN)]
    benchmark = next((name for name in CLEAN if (clean["benchmark"] == name).any()), "val")
    yield Drawing(
        "cost", "cost", "Time of a step by its phases, peak memory and accuracy of each cell.",
        f"What a step takes, by phase, and its peak memory, beside top-1 accuracy on {benchmark}: "
        "means over the runs of a cell.",
        cost, (costs, clean, cells), {"benchmark": benchmark},
    )  # fmt: skip


def _effects(found: Findings) -> Iterator[Drawing]:
    """Axes against each other; of one axis the differences tell everything."""
    yield Drawing(
        "effects", "effects", "The effect of each level of each axis, with intervals; the numbers "
        "are in the table above.",
        "Each level's difference to the reference level of its axis, averaged over the settings of "
        "all other axes. Bar: 95 % interval; filled: decided among all of these.",
        marginal, (found.marginals,), {"wanted": found.wanted},
    )  # fmt: skip
    if len(found.plan.axes) < 2:
        return
    top1 = found.frame[found.frame["metric"] == "top1"]
    present = set(top1["benchmark"])
    rows, columns = leading_axes(found)
    clean = [name for name in CLEAN if name in present][:1]
    for benchmark in [*clean, *found.shifted[:1]]:
        yield Drawing(
            "effects", f"heat-{benchmark}",
            f"Mean accuracy on {benchmark} for each pair of {rows} and {columns}.",
            f"Top-1 accuracy (%) on {benchmark} by {rows} and {columns}: the mean over the seeds.",
            heat, (top1[top1["benchmark"] == benchmark], found.cells, rows, columns, benchmark),
        )  # fmt: skip


def leading_axes(found: Findings) -> tuple[str, str]:
    """The two axes that account for most of the variance, in the plan's order; the first two where
    that is not known."""
    leveled = leveled_axes(found.cells, found.plan.axes)
    axes = leveled if len(leveled) > 1 else list(found.plan.axes)
    if len(found.shares):
        held = found.shares.groupby("source")["share"].sum()
        chosen = sorted(axes, key=lambda axis: -held.get(axis, 0.0))[:2]
        axes = [axis for axis in axes if axis in chosen]
    return axes[0], axes[1]


def _robustness(found: Findings, frame: pd.DataFrame, cells: pd.DataFrame) -> Iterator[Drawing]:
    benchmarks, more = found.shifted[:MOST_SHIFTED], found.shifted[MOST_SHIFTED:]
    if not benchmarks:
        return
    yield Drawing(
        "robustness", "robustness", "Accuracy under shift against clean accuracy of each cell, "
        "with reference models.",
        "Accuracy under shift against clean accuracy, on logit scales. Marker: mean of a cell; "
        "small dots: single seeds; grey crosses: reference models, and the line through them; "
        "where there are none, the line of equal accuracy."
        + (f" The first {MOST_SHIFTED} of {len(found.shifted)} test sets." if more else ""),
        shift, (frame, cells, benchmarks, found.references),
    )  # fmt: skip


def _courses(found: Findings, cells: pd.DataFrame) -> Iterator[Drawing]:
    """How training went."""
    band = "Line: mean over the seeds; the band is said in the figure."
    for name, words in (("val/top1", "Top-1 accuracy on val (%)"), ("train/loss", "Loss")):
        yield Drawing(
            "learning", f"course-{name.replace('/', '-')}",
            f"{words} over training, a line a cell.", f"{words} over training. {band}",
            learning_curves, (found.curves[found.curves["name"] == name], cells, name),
        )  # fmt: skip
    chosen = found.curves[found.curves["name"].isin(list(HEALTH))]
    yield Drawing(
        "learning", "health", "Effective rank, precision of matches and similarities over "
        "training, a line a cell.",
        f"Health of the features over training: effective rank, precision of the matches of "
        f"patches, cosine similarities. {band}",
        health, (chosen, cells),
    )  # fmt: skip
