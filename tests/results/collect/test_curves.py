"""Learning curves and health: how seeds that end, diverge or are many are drawn."""

import math

import numpy as np
import pytest
from figureframes import lines_of, make_cells, make_curves, notes
from matplotlib.colors import to_hex
from scipy import stats

from densevit.results.figures.curves import LEAST_SEEDS, MOST_POINTS, learning_curves
from densevit.results.figures.feature_health import HEALTH, health
from densevit.results.figures.style import PALETTE, REST


def test_curves_show_the_mean_and_the_t_interval():
    cells = make_cells(2)
    curves = make_curves(cells, seeds=4)
    figure = learning_curves(curves, cells)
    axes = figure.axes[0]
    for line, cell in zip(axes.get_lines(), cells["cell"], strict=True):
        values = curves[curves["cell"] == cell].pivot(index="epoch", columns="run", values="value")
        assert line.get_xdata() == pytest.approx(values.index)
        assert line.get_ydata() == pytest.approx(values.mean(axis=1))
    band = axes.collections[1].get_paths()[0].vertices
    low, high = stats.t.interval(0.95, 3, values.mean(axis=1), stats.sem(values, axis=1))
    last = band[band[:, 0] == 20][:, 1]
    assert {round(v, 6) for v in last} == {round(v, 6) for v in (low[-1], high[-1])}
    assert "95 % t interval" in notes(figure)


def test_bands_of_few_seeds_go_from_lowest_to_highest():
    cells = make_cells(1)
    curves = make_curves(cells, seeds=LEAST_SEEDS - 1)
    figure = learning_curves(curves, cells)
    last = curves[curves["epoch"] == 20]["value"]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    ends = band[band[:, 0] == 20][:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((last.min(), last.max()))
    assert "from the lowest to the highest seed" in notes(figure)
    alone = learning_curves(curves[curves["seed"] == 0], cells)
    assert not alone.axes[0].collections or not alone.axes[0].collections[0].get_paths()
    assert "Band" not in notes(alone)


def test_a_seed_that_ended_early_makes_the_rest_faint():
    cells = make_cells(1)
    curves = make_curves(cells, seeds=4)
    curves = curves[(curves["run"] != "c0-s1") | (curves["epoch"] <= 12)]
    figure = learning_curves(curves, cells)
    whole, rest = figure.axes[0].get_lines()
    assert max(whole.get_xdata()[np.isfinite(whole.get_ydata())]) == 12
    assert min(rest.get_xdata()[np.isfinite(rest.get_ydata())]) == 12
    assert rest.get_ydata()[-1] == pytest.approx(curves[curves["epoch"] == 20]["value"].mean())
    assert rest.get_alpha() < (whole.get_alpha() or 1)
    assert "Faint: some seeds have ended." in notes(figure)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_where_a_seed_is_no_number_there_is_a_cross(bad):
    cells = make_cells(2)
    curves = make_curves(cells)
    gone = (curves["run"] == "c1-s2") & (curves["epoch"] > 7)
    before = curves[(curves["run"] == "c1-s2") & (curves["epoch"] == 7)]["value"].item()
    curves.loc[gone, "value"] = bad
    curves.loc[gone & (curves["epoch"] == 20), "value"] = 1e9  # and a number again, an extreme one
    figure = learning_curves(curves, cells)
    (cross,) = lines_of(figure.axes[0], "x")
    assert (*cross.get_xdata(), *cross.get_ydata()) == pytest.approx((7.0, before))
    assert figure.axes[0].get_ylim()[1] < 200
    curves.loc[curves["cell"] == "c1", "value"] = bad
    shown = learning_curves(curves, cells).legends[0].get_texts()
    assert "(not a number)" in shown[1].get_text()


def test_of_many_cells_the_best_have_a_style_and_the_others_are_grey():
    cells = make_cells(9)
    curves = make_curves(cells)
    curves["value"] += curves["cell"].str[1:].astype(int) * 3
    figure = learning_curves(curves, cells)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(cells["label"][3:])
    grey = [line for line in figure.axes[0].get_lines() if line.get_color() == REST]
    assert len(grey) == 3
    assert "Gray: 3 other cells" in notes(figure)
    curves["name"] = "train/loss"
    figure = learning_curves(curves, cells, "train/loss")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(cells["label"][:6])


def test_many_steps_are_averaged_and_gaps_bridged():
    cells = make_cells(1)
    curves = make_curves(cells, seeds=1, epochs=10 * MOST_POINTS)
    line = learning_curves(curves, cells).axes[0].get_lines()[0]
    assert len(line.get_xdata()) == MOST_POINTS
    assert line.get_ydata()[3] == pytest.approx(curves["value"][30:40].mean())
    two = make_curves(cells, seeds=2)
    sparse = two[(two["seed"] == 0) | (two["epoch"] % 2 == 1)]
    line = learning_curves(sparse, cells).axes[0].get_lines()[0]
    value = two.pivot(index="epoch", columns="seed", values="value")
    wanted = (value[0][2] + (value[1][1] + value[1][3]) / 2) / 2
    assert line.get_ydata()[1] == pytest.approx(wanted)


def test_health_has_a_panel_for_what_was_logged():
    cells = make_cells(3)
    names = ("health/image_rank", "health/match_precision", "health/dense_positive_similarity")
    curves = make_curves(cells, names=names)
    curves = curves[(curves["cell"] != "c0") | (curves["name"] != names[2])]
    figure = health(curves, cells)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == [HEALTH[names[0]], HEALTH[names[2]], HEALTH[names[1]]]
    assert [len(axes.get_lines()) for axes in panels] == [3, 2, 3]
    rows = curves[(curves["cell"] == "c2") & (curves["name"] == names[1])]
    line = panels[2].get_lines()[2]
    assert line.get_ydata() == pytest.approx(rows.groupby("epoch")["value"].mean())
    assert to_hex(panels[1].get_lines()[0].get_color()) == PALETTE[1].lower()  # as elsewhere
