"""Figures of small synthetic frames: their content, their readability, and that nothing breaks."""

import itertools
import math
import warnings
from collections import namedtuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figureframes import (
    AXES,
    BENCHMARKS,
    LONG,
    lines_of,
    make_cells,
    make_costs,
    make_curves,
    make_differences,
    make_frame,
    make_marginals,
    make_table,
    notes,
)
from matplotlib.text import Text

from densevit.results.figures import style
from densevit.results.figures.accuracy import accuracy
from densevit.results.figures.cost import cost
from densevit.results.figures.curves import learning_curves
from densevit.results.figures.effects import marginal
from densevit.results.figures.feature_health import DRAWN, HEALTH, health
from densevit.results.figures.forest import MOST_ROWS, forest
from densevit.results.figures.heatmap import heat, text_color
from densevit.results.figures.pareto import pareto, pareto_front
from densevit.results.figures.robustness import shift, ticks_between
from densevit.results.figures.style import REST, SMALL, STYLES, save, styled, wrapped
from densevit.results.stats.reference_models import read_references
from densevit.results.stats.robustness import fit_line
from densevit.utils.errors import UserError

Box = namedtuple("Box", "x0 y0 x1 y1")


def health_curves(cells):
    """Return curves of all names of the health figure; the maximum of a rank is constant."""
    curves = make_curves(cells, names=DRAWN)
    return curves.assign(value=curves["value"].mask(curves["name"].str.endswith("_max"), 4096.0))


def every_figure(cells, benchmarks=BENCHMARKS):
    """Yield each kind of figure by name, newly drawn."""
    frame, shifted = make_frame(cells, benchmarks=benchmarks), benchmarks[1:]
    return {
        "accuracy": accuracy(make_table(cells, frame, benchmarks), frame),
        "curves": learning_curves(make_curves(cells), cells),
        "shift": shift(frame, cells, shifted, read_references()),
        "alone": shift(frame, cells, [shifted[0]]),
        "heat": heat(frame, cells, "temperature", "queue_size") if len(cells) > 1 else None,
        "marginal": marginal(make_marginals(benchmarks), smallest_effect=1.0),
        "forest": forest(make_differences(cells, benchmarks), cells, smallest_effect=1.0)
        if len(cells) > 1
        else None,
        "health": health(health_curves(cells), cells),
        "cost": cost(make_costs(cells), frame, cells),
        "pareto": pareto(make_costs(cells, 3), frame, cells) if len(cells) > 1 else None,
    }


def drawn_texts(figure, monkeypatch):
    """Return every drawn text and its box in pixels, as numbers: a Bbox is slow."""
    seen, draw = {}, Text.draw

    def noted(self, renderer, *args, **kwargs):
        if self.get_text().strip() and self.get_visible():
            seen[id(self)] = self
        return draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        figure.canvas.draw()
    return [(text, Box(*text.get_window_extent().extents)) for text in seen.values()]


# Readable.


@pytest.mark.parametrize(
    ("count", "labels"), [(13, ()), (8, [LONG]), (2, ["_hidden", LONG]), (1, [LONG])]
)
def test_no_letters_overlap_are_cut_off_or_too_small(count, labels, monkeypatch):
    for name, figure in every_figure(make_cells(count, labels)).items():
        if figure is None:
            continue
        assert figure.get_size_inches()[0] == 3.5
        texts = drawn_texts(figure, monkeypatch)
        assert texts
        width, height = figure.bbox.width, figure.bbox.height
        for text, box in texts:
            assert text.get_fontsize() >= SMALL
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
            assert inside, (name, text.get_text(), box)
        for (one, a), (other, b) in itertools.combinations(texts, 2):
            apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
            assert apart, (name, one.get_text(), other.get_text())


@pytest.mark.parametrize(("count", "columns"), [(7, 2), (10, 2), (20, 3), (40, 4)])
def test_accuracy_of_many_cells_fits_a_page_s_column_and_is_readable(count, columns, monkeypatch):
    cells = make_cells(count)
    frame = make_frame(cells)
    figure = accuracy(make_table(cells, frame), frame)
    width, height = figure.get_size_inches()
    assert width == 3.5
    assert height <= 9.01
    texts = drawn_texts(figure, monkeypatch)
    for text, _ in texts:
        assert text.get_fontsize() >= SMALL
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
        assert apart, (one.get_text(), other.get_text())
    panels = [axes for axes in figure.axes if axes.get_visible()]
    boxes = [axes.get_position() for axes in panels]
    assert len(panels) == len(BENCHMARKS)
    assert len({round(box.x0, 4) for box in boxes}) == columns
    # A point of accuracy has the same length in each of them.
    points = [box.width / np.ptp(a.get_xlim()) for a, box in zip(panels, boxes, strict=True)]
    assert points == pytest.approx([points[0]] * len(panels), rel=1e-3)
    # The dot of each cell is at its label.
    for axes in panels:
        dots = [line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
        assert dots == pytest.approx(axes.get_yticks())
        assert len(dots) == count


def test_a_row_is_as_high_as_its_own_label_needs():
    cells = make_cells(8, [LONG])
    frame = make_frame(cells, benchmarks=("val",))
    axes = accuracy(make_table(cells, frame, ("val",)), frame).axes[0]
    first, second, *_, last = np.diff(axes.get_yticks())
    assert first > 2 * second
    assert second == last == 1


def test_lines_break_where_words_do():
    assert wrapped("vit_small_patch16_224", 20) == "vit_small_patch16_\n224"
    assert wrapped("stylized-imagenet", 12) == "stylized-\nimagenet"
    assert wrapped("val at -0.5 and 1e-05", 8) == "val at\n-0.5 and\n1e-05"
    assert wrapped("dense · vit_small_patch16_224 · 0.1", 24) == (
        "dense ·\nvit_small_patch16_224 ·\n0.1"
    )
    assert wrapped("x" * 50, 20).split("\n") == ["x" * 20, "x" * 20, "x" * 10]
    assert wrapped("对比学习" * 4, 20) == "对比学习对比学习对比\n学习对比学习"  # two letters wide
    assert wrapped("a  b\tc", 20) == "a b c"
    assert wrapped("", 20) == ""
    rows = make_marginals().assign(level="vit_small_patch16_224")
    labels = [text.get_text() for text in marginal(rows).axes[0].get_yticklabels()]
    assert labels == ["vit_small_patch16_\n224"]


def test_letters_that_no_font_has_are_drawn_without_a_word(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(style, "FONTS", ("DejaVu Sans", "No Such Font"))
    style.families.cache_clear()
    cells = make_cells(8, ["对比 🙂"])
    frame = make_frame(cells)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = accuracy(make_table(cells, frame), frame)
        save(figure, tmp_path / "a.png", tmp_path / "a.pdf")
        with styled():
            warnings.warn("another", UserWarning, stacklevel=1)
    style.families.cache_clear()
    assert [str(warning.message) for warning in caught] == ["another"]
    assert not caplog.records


def test_a_label_shows_dollars_and_underscores_as_they_are(monkeypatch):
    cells = make_cells(2, ["_a $x$ b", "costs $5"])
    figure = learning_curves(make_curves(cells), cells)
    shown = [text.get_text().strip() for text in figure.legends[0].get_texts()]
    assert shown == [r"_a \$x\$ b", r"costs \$5"]
    assert not any(text.get_usetex() for text in figure.legends[0].get_texts())


def test_styles_differ_in_color_marker_and_dashes():
    for part in zip(*STYLES, strict=True):
        assert len(set(map(str, part))) == len(STYLES)


def test_same_numbers_give_the_same_bytes(tmp_path):
    before = dict(mpl.rcParams)
    written = []
    for _ in range(2):
        cells = make_cells(3)
        made = (
            learning_curves(make_curves(cells), cells),
            heat(make_frame(cells), cells, "temperature", "queue_size"),
            cost(make_costs(cells), make_frame(cells), cells),
        )
        files = []
        for figure in made:
            save(figure, tmp_path / "a.png", tmp_path / "a.pdf")
            files += [(tmp_path / f"a.{kind}").read_bytes() for kind in ("png", "pdf")]
        written.append(files)
    assert written[0] == written[1]
    assert dict(mpl.rcParams) == before


def test_nothing_to_draw_is_none():
    cells = make_cells(3)
    frame, curves = make_frame(cells), make_curves(cells)
    assert learning_curves(curves.iloc[:0], cells) is None
    assert learning_curves(curves, cells, "train/loss") is None
    assert learning_curves(curves.assign(cell="another sweep's"), cells) is None
    assert health(curves, cells) is None
    assert shift(frame.iloc[:0], cells, ["imagenet-sketch"]) is None
    assert shift(frame, cells, ["nothing"]) is None
    assert heat(frame, cells, "temperature", "queue_size", "nothing") is None
    assert heat(frame.iloc[:0], cells, "temperature", "queue_size") is None
    assert forest(make_differences(cells).iloc[:0], cells) is None
    assert marginal(make_marginals().iloc[:0]) is None
    assert marginal(pd.DataFrame()) is None
    costs = make_costs(cells)
    assert pareto(costs.iloc[:0], frame, cells) is None
    assert pareto(costs, frame[frame["cell"] == "c0"], cells) is None, "one cell has no front"
    assert cost(costs.iloc[:0], frame, cells) is None
    assert cost(costs.assign(**dict.fromkeys(costs.columns[4:], math.nan)), frame, cells) is None


# Accuracy, robustness.


def test_shift_shows_cells_seeds_models_and_their_line():
    cells, models = make_cells(2), read_references()
    frame = make_frame(cells)
    axes = shift(frame, cells, ["imagenet-v2"], models).axes[0]
    line, crosses, *marks = axes.get_lines()
    fitted = fit_line(models["imagenet"], models["imagenet-v2"])
    x = line.get_xdata()
    assert line.get_ydata() == pytest.approx(fitted.predict(x))
    assert len(crosses.get_xdata()) == models["imagenet-v2"].notna().sum()
    top1 = frame[frame["metric"] == "top1"].pivot(index="run", columns="benchmark", values="value")
    mean = top1[top1.index.str.startswith("c1")].mean()
    assert (*marks[-1].get_xdata(), *marks[-1].get_ydata()) == pytest.approx(
        (mean["val"], mean["imagenet-v2"])
    )
    seeds = top1.loc[[f"c0-s{i}" for i in range(3)]]
    assert sorted(marks[0].get_xdata()) == pytest.approx(sorted(seeds["val"]))
    # A straight line on logit scales: the axes are such.
    ends = axes.transData.transform(np.column_stack([x, fitted.predict(x)]))
    slopes = np.diff(ends[:, 1]) / np.diff(ends[:, 0])
    assert slopes == pytest.approx(np.full(len(slopes), slopes[0]))


def test_shift_starts_from_the_accuracy_among_the_same_classes():
    cells = make_cells(1)
    frame = make_frame(cells, seeds=1)
    axes = shift(frame, cells, ["imagenet-a"], read_references()).axes[0]
    clean = frame[frame["metric"] == "top1_imagenet-a"]["value"].item()
    assert axes.get_lines()[-1].get_xdata() == pytest.approx([clean])
    assert "200 classes" in axes.get_xlabel()
    # Among the classes of another data set, accuracies are not comparable.
    other = frame.assign(value=frame["value"].where(frame["metric"] != "ways", 100.0))
    assert shift(other, cells, ["imagenet-a"], read_references()) is None


def test_shift_leaves_out_what_is_no_number_and_says_so():
    cells = make_cells(2)
    frame = make_frame(cells, benchmarks=("val", "mine"))
    bad = (frame["cell"] == "c1") & (frame["benchmark"] == "mine") & (frame["metric"] == "top1")
    frame.loc[bad, "value"] = math.nan
    figure = shift(frame, cells, ["mine"])
    assert "1 of 2 cells have no number" in notes(figure)
    few = pd.DataFrame({"model": ["a", "b"], "val": [50.0, 60.0], "mine": [40.0, 45.0]})
    figure = shift(frame, cells, ["mine"], few)
    assert "Crosses: reference models." in notes(figure)
    frame.loc[frame["benchmark"] == "mine", "value"] = 0.0
    frame.loc[frame["benchmark"] == "val", "value"] = 100.0
    figure = shift(frame, cells, ["mine"])
    figure.canvas.draw()
    assert np.isfinite(figure.axes[0].get_xlim()).all()


def test_shift_names_the_measured_test_sets_that_it_does_not_draw():
    cells = make_cells(2)
    frame = make_frame(cells)
    benchmarks = ("imagenet-v2", "imagenet-a", "imagenet-sketch", "imagenet-r", "mine")
    assert "Not drawn" not in notes(shift(frame, cells, benchmarks))  # `mine` was not measured
    hundred = (frame["metric"] == "ways") & frame["benchmark"].isin(["imagenet-a"])
    other = frame.assign(value=frame["value"].mask(hundred, 100.0))
    unknown = (other["metric"] == "ways") & (other["benchmark"] == "imagenet-sketch")
    other = other[~unknown & (other["metric"] != "top1_imagenet-r")]
    figure = shift(other, cells, benchmarks, read_references())
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 1
    text = notes(figure)
    assert "Not drawn: imagenet-a (other classes than the published ones)." in text
    assert "Not drawn: imagenet-sketch (number of classes unknown)." in text
    assert "Not drawn: imagenet-r (no clean accuracy among its 200 classes)." in text
    assert "mine" not in text
    nothing = (frame["metric"] == "top1") & frame["benchmark"].isin(["imagenet-a", "imagenet-r"])
    figure = shift(frame.assign(value=frame["value"].mask(nothing)), cells, benchmarks)
    assert "Not drawn: imagenet-a, imagenet-r (no number)." in notes(figure)
    figure.canvas.draw()
    box = figure._supxlabel.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_ticks_of_a_logit_axis_are_round_and_apart():
    assert ticks_between(0.05, 99.95, 6) == [0.1, 1, 10, 50, 90, 99, 99.9]
    assert ticks_between(61.0, 64.0, 4) == [61.0, 62.0, 63.0, 64.0]


# Two axes.


def test_heat_has_each_mean_in_its_place_and_marks_holes():
    cells = make_cells(11)  # none, and global at two temperatures times five sizes
    frame = make_frame(cells)
    top1 = frame[(frame["metric"] == "top1") & (frame["benchmark"] == "val")]
    means = top1.groupby("cell")["value"].mean()
    frame = frame[frame["cell"] != "c4"]
    frame.loc[(frame["cell"] == "c7") & (frame["seed"] == 0), "value"] = math.nan
    figure = heat(frame, cells, "temperature", "queue_size")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "256",
        "1024",
        "4096",
        "16384",
        "65536",
    ]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0.1", "0.2"]
    shown = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    at = {(row.temperature, row.queue_size): row.cell for row in cells[1:].itertuples()}
    for (x, y), text in shown.items():
        cell = at[(0.1, 0.2)[y], (256, 1024, 4096, 16384, 65536)[x]]
        assert text == ("nan" if cell == "c7" else f"{means[cell]:.1f}")
    assert len(shown) == 9
    assert [patch.get_hatch() for patch in axes.patches if patch.get_hatch()] == ["/////"]
    image = axes.images[0].get_array()
    assert image.mask.sum() == 2
    assert f"Not in the grid: none · – · – {means['c0']:.1f}." in notes(figure)
    assert "Hatched: no results." in notes(figure)


def test_heat_has_a_panel_for_each_setting_or_says_that_it_averages():
    cells = make_cells(41)
    frame = make_frame(cells, benchmarks=("val",))
    figure = heat(frame, cells, "temperature", "queue_size")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "cl_mode global",
        "cl_mode dense",
    ]
    figure = heat(frame[frame["cell"] != "c3"], cells, "cl_mode", "temperature")
    axes = figure.axes[0]
    top1 = frame[frame["metric"] == "top1"].groupby("cell")["value"].mean()
    here = cells[(cells["cl_mode"] == "dense") & (cells["temperature"] == 0.05)]["cell"]
    shown = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert shown[0, 1] == f"{top1[here].mean():.1f}"
    assert [text for text in shown.values() if "*" in text] == [shown[2, 0]]
    assert "over seeds and over queue_size" in notes(figure)
    with pytest.raises(UserError, match=r"temperatur: .*temperature"):
        heat(frame, cells, "temperatur", "queue_size")


def test_numbers_on_colors_have_contrast():
    assert text_color((1.0, 1.0, 0.0)) == "black"
    assert text_color((0.2, 0.0, 0.3)) == "white"


# Differences.


def rows_of(axes):
    """Return the drawn differences: y to value, interval or None, and whether filled."""
    found = {}
    lines = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1]
    for line in lines:
        if len(line.get_xdata()) == 1 and line.get_marker() not in "<>":
            spans = [s.get_xdata() for s in lines
                     if len(s.get_xdata()) == 2 and s.get_ydata()[0] == line.get_ydata()[0]]  # fmt: skip
            interval = tuple(spans[0]) if spans else None
            filled = line.get_markerfacecolor() != "white"
            found[float(line.get_ydata()[0])] = (line.get_xdata()[0], interval, filled)
    return found


def test_forest_shows_each_difference_in_its_row():
    cells = make_cells(3)
    differences = make_differences(cells, ("val", "sketch"))
    axes = forest(differences, cells).axes[0]
    expected = differences.sort_values(["benchmark", "cell"], ascending=[False, True])
    drawn = [row for _, row in sorted(rows_of(axes).items())]
    assert [row[0] for row in drawn] == pytest.approx(list(expected["difference"]))
    assert [row[1][0] for row in drawn] == pytest.approx(list(expected["low"]))
    assert [row[2] for row in drawn] == list(expected["verdict"] == "established")
    assert {True, False} == {row[2] for row in drawn}
    assert [t.get_text() for t in axes.get_yticklabels()] == ["val", "sketch"]


def test_forest_with_many_cells_has_a_panel_a_benchmark():
    cells = make_cells(9)
    differences = make_differences(cells, ("val", "sketch"))
    names = {"c1": "global − none"}
    figure = forest(differences, cells, names=names, smallest_effect=0.5)
    for axes, name in zip(figure.axes, ("val", "sketch"), strict=True):
        rows = differences[differences["benchmark"] == name]
        drawn = [row[0] for _, row in sorted(rows_of(axes).items())]
        assert drawn == pytest.approx(list(rows["difference"]))
        assert axes.get_xlim() == figure.axes[0].get_xlim()
    assert figure.axes[0].get_yticklabels()[0].get_text() == "global − none"


def test_forest_shows_the_telling_ones_of_many_and_says_so():
    cells = make_cells(40)
    differences = make_differences(cells, ("val",)).assign(verdict="too noisy")
    differences.loc[differences["cell"].isin(["c20", "c30"]), "verdict"] = "established"
    differences.loc[differences["cell"] == "c30", "difference"] = 0.01
    figure = forest(differences, cells)
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(labels) == MOST_ROWS
    size = differences.set_index("cell")["difference"].abs()
    largest = size.drop(["c20", "c30"]).nlargest(MOST_ROWS - 2).index
    chosen = cells[cells["cell"].isin([*largest, "c20", "c30"])]
    assert labels == list(chosen["label"])
    assert f"{MOST_ROWS} of 39 cells" in notes(figure)


def test_forest_with_a_single_seed_no_number_and_a_huge_interval():
    cells = make_cells(5)
    differences = make_differences(cells, ("val",))
    differences.loc[0, ["low", "high", "verdict"]] = [math.nan, math.nan, "single"]
    differences.loc[1, ["difference", "low", "high"]] = math.nan
    differences.loc[2, ["low", "high"]] = [-400.0, 400.0]
    figure = forest(differences, cells)
    axes = figure.axes[0]
    drawn = rows_of(axes)
    assert sorted(drawn) == [0, 2, 3]
    assert drawn[0][1] is None
    assert [text.get_text() for text in axes.texts] == ["not a number"]
    assert np.abs(axes.get_xlim()).max() < 50
    assert len(lines_of(axes, "<")) == len(lines_of(axes, ">")) == 1
    assert "Without a line" in notes(figure)


def test_marginal_has_a_panel_an_axis_and_a_row_a_level():
    marginals = make_marginals()
    figure = marginal(marginals)
    assert len(figure.axes) == len(AXES)
    for axes, (axis, (first, *levels)) in zip(figure.axes, AXES.items(), strict=True):
        rows = marginals[marginals["axis"] == axis]
        drawn = [row for _, row in sorted(rows_of(axes).items())]
        assert [row[0] for row in drawn] == pytest.approx(list(rows["difference"]))
        assert [row[2] for row in drawn] == list(rows["p_holm"] < 0.05)
        assert [t.get_text() for t in axes.get_yticklabels()] == [str(level) for level in levels]
        assert f"(reference: {first})" in axes.get_title(loc="left")
    several = marginal(make_marginals(BENCHMARKS))
    assert len(several.legends[0].get_texts()) == 6
    assert "6 of 7 benchmarks" in notes(several)
    marginals.loc[0, ["difference", "low", "high", "p_holm"]] = math.nan
    assert [t.get_text() for t in marginal(marginals).axes[0].texts] == ["not a number"]


# Health.


def test_health_shows_the_best_of_each_kind_of_loss():
    """Dense cells have the most precise matches, but no values for the panels of global pairs."""
    cells = make_cells(41)  # none, twenty global, twenty dense
    curves = make_curves(cells, seeds=1, epochs=3, names=tuple(HEALTH))
    for one in ("global", "dense"):
        mode = curves["cell"].map(cells.set_index("cell")["cl_mode"])
        curves = curves[~(curves["name"].str.startswith(f"health/{one}_") & (mode != one))]
    place = curves["cell"].str[1:].astype(int)
    precise = curves["name"] == "health/match_precision"
    curves = curves.assign(value=curves["value"].mask(precise, place.astype(float)))
    figure = health(curves, cells)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    best = ["c0", "c19", "c20", "c38", "c39", "c40"]
    assert shown == list(cells.set_index("cell").loc[best, "label"])
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) > 1
    for axes in panels:
        assert {line.get_color() for line in axes.get_lines()} - {REST}
    assert "35 other cells, not among the best of their kind" in notes(figure)


def test_precision_has_its_baselines_and_a_rank_its_maximum():
    cells, constant = make_cells(3), {
        "health/match_precision_same_index": 0.17,
        "health/match_precision_uniform": 0.04,
        "health/patch_rank_max": 192.0,
        "health/image_rank_max": math.nan,
    }  # fmt: skip
    names = ("health/match_precision", "health/patch_rank", "health/image_rank")
    curves = make_curves(cells, names=(*names, *constant))
    level = curves["name"].map(constant)
    curves = curves.assign(value=curves["value"].where(level.isna(), level))
    curves.loc[curves["name"] == "health/image_rank_max", "value"] = curves["seed"] + 64.0
    panels = {axes.get_title(loc="left"): axes for axes in health(curves, cells).axes}
    assert {"rank, patches (of 192)", "rank, image"} <= panels.keys()
    matches = panels["precision of matches"]
    lines = [line.get_ydata()[0] for line in matches.get_lines() if line.get_linestyle() == ":"]
    assert lines == pytest.approx([0.17, 0.04])
    assert [text.get_text() for text in matches.texts] == ["same index", "uniform"]
    low, high = matches.get_ylim()
    assert low < 0.04 < 0.17 < high


# Cost.


def test_the_pareto_front_is_what_no_other_cell_beats():
    chance = np.random.default_rng(0)
    for _ in range(50):  # few values, so that some are equal
        means = pd.DataFrame(
            {"gpu_hours": chance.integers(1, 6, 9), "accuracy": chance.integers(1, 6, 9)},
            index=[f"c{i}" for i in range(9)],
        )
        unbeaten = means[[
            not any(
                hours <= row.gpu_hours and top1 >= row.accuracy and (hours, top1) != tuple(row)
                for hours, top1 in means.itertuples(index=False)
            )
            for row in means.itertuples(index=False)
        ]]  # fmt: skip
        front = pareto_front(means)
        points = sorted(set(unbeaten.itertuples(index=False, name=None)))
        assert [tuple(point) for point in means.loc[front].to_numpy()] == points


def test_pareto_draws_each_cell_at_its_means_and_joins_the_front():
    cells = make_cells(8)
    costs, frame = make_costs(cells, 3), make_frame(cells)
    (axes,) = pareto(costs, frame, cells).axes
    top1 = frame[(frame["metric"] == "top1") & (frame["benchmark"] == "val")]
    means = pd.DataFrame({
        "gpu_hours": costs.groupby("cell")["gpu_hours"].mean(),
        "accuracy": top1.groupby("cell")["value"].mean(),
    })  # fmt: skip
    drawn = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in axes.get_lines() if len(line.get_xdata()) == 1
    }  # fmt: skip
    assert np.array(sorted(drawn)) == pytest.approx(means.sort_values("gpu_hours").to_numpy())
    (front,) = (line for line in axes.get_lines() if line.get_drawstyle() == "steps-post")
    assert list(front.get_xdata()) == list(means.loc[pareto_front(means), "gpu_hours"])


def test_cost_stacks_the_phases_to_the_time_of_a_step():
    cells = make_cells(4)
    costs, frame = make_costs(cells[:3]), make_frame(cells[:3])
    costs.loc[costs["cell"] == "c2", [c for c in costs if c.endswith("_ms") and c != "step_ms"]] = (
        math.nan
    )
    frame.loc[(frame["cell"] == "c1") & (frame["seed"] == 0), "value"] = math.nan
    times, memory, top1 = cost(costs, frame, cells).axes
    means = costs.groupby("cell").mean(numeric_only=True)
    for y, cell in enumerate(("c0", "c1", "c2")):
        bars = [b for b in times.patches if round(b.get_y() + b.get_height() / 2) == y]
        assert len(bars) == (1 if cell == "c2" else 5)
        end = max(bar.get_x() + bar.get_width() for bar in bars)
        assert end == pytest.approx(means["step_ms"][cell])
    assert [t.get_text() for t in times.texts] == ["missing"]
    assert memory.get_lines()[0].get_xdata() == pytest.approx(means["peak_memory_mib"] / 1024)
    rows = frame[(frame["metric"] == "top1") & (frame["benchmark"] == "val")]
    expected = rows.groupby("cell")["value"].mean()[["c0", "c2"]]
    assert top1.get_lines()[0].get_xdata() == pytest.approx(expected)
    assert list(top1.get_lines()[0].get_ydata()) == [0, 2]
    assert len(cost(costs, frame.iloc[:0], cells).axes) == 2
