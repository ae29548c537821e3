"""Effects of axes, shares of variance and reversals: by hand, and in synthetic grids with a planted
truth."""

import gc
import math
import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats import multitest
from statsmodels.stats.anova import anova_lm

from densevit.results.stats.marginals import flips, marginals
from densevit.results.stats.variance import SHARES, variance_shares


@pytest.fixture(autouse=True)
def no_warnings(monkeypatch):
    # multipletests collects garbage at each call: a tenth of a second in a large process.
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def grid_of(**axes):
    """Return `cells_frame` of a full grid; cell ids are the values joined by a dash."""
    rows = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return cells_of(*rows)


def cells_of(*rows):
    ids = ["-".join(str(v) for v in row.values()) for row in rows]
    columns = {axis: pd.Series([row[axis] for row in rows], dtype=object) for axis in rows[0]}
    return pd.DataFrame({"cell": ids, "label": ids} | columns)


def measured(cells, value, seeds=4, n=50_000):
    """Return tidy rows of every cell and seed; `value(row, seed)` is its accuracy, None for no run."""
    rows = [
        (f"{row['cell']}/{seed}", row["cell"], seed, "finished", "val", "top1", found, n)
        for row in cells.to_dict("records")
        for seed in range(seeds)
        if (found := value(row, seed)) is not None
    ]
    columns = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]
    return pd.DataFrame(rows, columns=columns)


def noisy(rng, std, mean):
    return lambda row, seed: mean(row, seed) + rng.normal(0, std)


def test_each_number_is_that_of_scipy_and_pandas():
    rng = np.random.default_rng(0)
    cells = grid_of(mode=["none", "global", "dense"], depth=[1, 2], queue=[0, 8])
    frame = measured(cells, noisy(rng, 1.0, lambda row, seed: 50 + seed + 2 * row["depth"]), 5)
    found = marginals(frame.sample(frac=1, random_state=1), cells, "mode", "val")
    modes = frame["cell"].str.partition("-")[0]
    means = frame.groupby([modes, "seed"])["value"].mean().unstack()
    tests = [stats.ttest_rel(means.loc[mode], means.loc["none"]) for mode in ("global", "dense")]
    assert list(found["level"]) == ["global", "dense"]
    assert set(found["reference"]) == {"none"}
    assert set(found["contexts"]) == {4}
    assert set(found["n"]) == {5}
    for row, test in zip(found.itertuples(), tests, strict=True):
        low, high = test.confidence_interval()
        assert row.difference == pytest.approx((means.loc[row.level] - means.loc["none"]).mean())
        assert (row.low, row.high, row.p) == pytest.approx((low, high, test.pvalue))
    corrected = multitest.multipletests([test.pvalue for test in tests], method="holm")[1]
    assert list(found["p_holm"]) == pytest.approx(list(corrected))


def test_holes_do_not_mislead():
    """Large queues, which are better by far, were never run without the loss."""
    rng = np.random.default_rng(1)
    cells = grid_of(mode=["none", "dense"], queue=[0, 1, 2, 3])

    def value(row, seed):
        if row["mode"] == "none" and row["queue"] > 1:
            return None
        planted = 1.5 * (row["mode"] == "dense") + 10 * row["queue"]
        return 40 + planted + seed + rng.normal(0, 0.2)

    frame = measured(cells, value, 5)
    naive = frame.groupby(frame["cell"].str.startswith("dense"))["value"].mean()
    (row,) = marginals(frame, cells, "mode", "val").itertuples()
    assert naive[True] - naive[False] > 10
    assert row.contexts == 2
    assert row.difference == pytest.approx(1.5, abs=0.4)
    assert row.low < 1.5 < row.high
    # Runs may also be missing from the plan.
    planned = cells[cells["cell"].isin(frame["cell"])]
    (again,) = marginals(frame, planned, "mode", "val").itertuples()
    assert again == row


def test_a_cell_without_an_axis_meets_each_that_has_it():
    cells = cells_of(
        {"mode": "none", "heat": None, "depth": 1}, {"mode": "none", "heat": None, "depth": 2},
        *({"mode": "dense", "heat": h, "depth": d} for h in (0.1, 0.2, 0.4) for d in (1, 2)),
    )  # fmt: skip
    numbers = {None: 0.0, 0.1: 1.0, 0.2: 2.0, 0.4: 6.0}
    frame = measured(cells, lambda row, seed: 50 + 5 * row["depth"] + numbers[row["heat"]] + seed)
    (row,) = marginals(frame, cells, "mode", "val").itertuples()
    assert (row.contexts, row.n, row.difference) == (6, 4, pytest.approx(3))
    found = marginals(frame, cells, "heat", "val").set_index("level")["difference"]
    assert found.to_dict() == pytest.approx({0.2: 1, 0.4: 5})  # none has no level of it


@pytest.mark.parametrize(
    ("contexts", "seeds", "missing", "kept"),
    [(5, 3, 1, (4, 3)), (2, 5, 1, (2, 4)), (3, 3, 1, (2, 3)), (1, 2, 1, (1, 1)), (3, 2, 2, (1, 2))],
)
def test_a_missing_run_costs_its_context_or_its_seed(contexts, seeds, missing, kept):
    """Whichever keeps more, but two seeds before one, which has no interval. No seed's mean leaves
    out a context that another's has."""
    cells = grid_of(mode=["none", "dense"], depth=range(contexts))

    def value(row, seed):
        if seed == 1 and row["mode"] == "dense" and row["depth"] < missing:
            return None
        return 50 + (1 + 7 * row["depth"]) * (row["mode"] == "dense")

    (row,) = marginals(measured(cells, value, seeds), cells, "mode", "val").itertuples()
    assert (row.contexts, row.n) == kept
    first = contexts - kept[0]
    assert row.difference == pytest.approx(1 + 7 * np.mean(range(first, contexts)))


def test_scattered_failures_leave_something():
    """Each seed lacks another context."""
    cells = grid_of(mode=["none", "dense"], depth=range(6))
    frame = measured(
        cells,
        lambda row, seed: None if row["depth"] == seed and row["mode"] == "dense" else 50.0 + seed,
    )
    (row,) = marginals(frame, cells, "mode", "val").itertuples()
    # Of 4 seeds: 4 x 2, 3 x 3, 2 x 4 or 1 x 5 pairs of runs are complete.
    assert (row.contexts, row.n, row.difference) == (3, 3, 0)


def test_nothing_in_common_and_one_seed():
    cells = grid_of(mode=["none", "dense", "global"])
    frame = measured(cells, lambda row, seed: 50.0 if row["mode"] != "dense" else None, 1)
    dense, other = marginals(frame, cells, "mode", "val").itertuples()
    assert (dense.contexts, dense.n) == (0, 0)
    assert (other.contexts, other.n, other.difference) == (1, 1, 0)
    assert all(math.isnan(v) for row in (dense, other) for v in (row.low, row.high, row.p_holm))
    assert math.isnan(dense.difference)
    assert marginals(frame.iloc[:0], cells, "mode", "val")["n"].tolist() == [0, 0]


def test_a_value_that_is_no_number_is_not_dropped():
    cells = grid_of(mode=["none", "dense", "global"], depth=[1, 2])
    broken = measured(
        cells,
        lambda row, seed: math.nan if (row["cell"], seed) == ("dense-1", 2) else 50.0 + seed,
    )
    dense, other = marginals(broken, cells, "mode", "val").itertuples()
    assert (dense.contexts, dense.n) == (2, 4)
    assert all(math.isnan(v) for v in (dense.difference, dense.low, dense.p, dense.p_holm))
    assert (other.difference, other.p) == (0, 1)
    assert variance_shares(broken, cells, ["mode", "depth"], "val").empty


def test_seeds_that_agree_to_the_last_picture_do_not_decide_by_that():
    cells = grid_of(mode=["none", "dense"])
    frame = measured(cells, lambda row, seed: 50 + seed + 0.2 * (row["mode"] == "dense"), 2, n=500)
    (row,) = marginals(frame, cells, "mode", "val").itertuples()
    assert row.p_holm > 0.05
    assert row.low < 0 < row.high


def test_levels_are_values_and_not_words():
    cells = grid_of(size=[[8, 8], [16, 8]], on=[True, 1, "one"])
    frame = measured(cells, lambda row, seed: 50 + row["size"][0] + (row["on"] is True) + seed)
    (row,) = marginals(frame, cells, "size", "val").itertuples()
    assert (row.level, row.reference, row.contexts, row.difference) == ([16, 8], [8, 8], 3, 8)
    found = marginals(frame, cells, "on", "val")
    assert list(found["level"]) == [1, "one"]
    assert list(found["reference"]) == [True, True]
    assert list(found["difference"]) == [-1, -1]


def test_chance_is_called_an_effect_in_a_twentieth_of_made_up_sweeps():
    rng, called, uncorrected = np.random.default_rng(2), 0, 0
    cells = grid_of(mode=["a", "b", "c", "d"], depth=[1, 2])
    for _ in range(200):
        shared = rng.normal(50, 1, 4)
        each = noisy(rng, 0.5, lambda row, seed, shared=shared: shared[seed] + row["depth"])
        found = marginals(measured(cells, each), cells, "mode", "val")
        called += (found["p_holm"] < 0.05).any()
        uncorrected += (found["p"] < 0.05).any()
    assert 0 < called <= 18  # 5 % of 200 are 10; in 99 of 100 cases there are at most 18
    assert uncorrected > 18, "without correction the test would fail"


PLANTED = {"mode": {"a": -2.0, "b": 2.0}, "depth": {1: -1.0, 2: 0.0, 3: 1.0}}  # variances 4, 2/3


def planted_frame(cells, seeds=30):
    """Return accuracies with seeds of variance 1 and noise of variance 1."""
    rng = np.random.default_rng(4)
    of_seed = rng.normal(0, 1, seeds)
    of_seed = (of_seed - of_seed.mean()) / of_seed.std()
    each = noisy(
        rng, 1.0,
        lambda row, seed: 50 + of_seed[seed] + sum(PLANTED[a][row[a]] for a in PLANTED),
    )  # fmt: skip
    return measured(cells, each, seeds)


def test_shares_are_those_that_were_planted():
    cells = grid_of(mode=["a", "b"], depth=[1, 2, 3], queue=range(8))
    axes = ["mode", "depth", "queue"]
    total = 4 + 2 / 3 + 1 + 1
    wants = {"mode": 4 / total, "depth": 2 / 3 / total, "queue": 0, "seed": 1 / total}
    wants["interactions and noise"] = 1 / total
    frame = planted_frame(cells)
    found = variance_shares(frame, cells, axes, "val")
    assert found["share"].sum() == pytest.approx(1)
    assert found.set_index("source")["share"].to_dict() == pytest.approx(wants, abs=0.03)
    # In a full grid it is the variance of the means over the variance of all.
    rows = frame.merge(cells, on="cell")
    for name in (*axes, "seed"):
        between = rows.groupby(name)["value"].mean().var(ddof=0) / rows["value"].var(ddof=0)
        assert found.set_index("source").loc[name, "share"] == pytest.approx(between)
    # With missing runs that leave few great depths to mode `a`, which pandas would attribute to the
    # mode.
    holey = cells[~((cells["mode"] == "a") & (cells["depth"] == 3))]
    again = variance_shares(frame[frame["cell"].isin(holey["cell"])], holey, axes, "val")
    assert again.set_index("source")["share"].to_dict() == pytest.approx(wants, abs=0.06)
    # Type II: no axis gains from its place before another.
    turned = variance_shares(frame[frame["cell"].isin(holey["cell"])], holey, axes[::-1], "val")
    told = turned.set_index("source")["share"].to_dict()
    assert told == pytest.approx(again.set_index("source")["share"].to_dict(), abs=1e-6)


def test_shares_are_those_of_statsmodels():
    """In a grid with missing cells, missing runs and an axis of many levels."""
    rng = np.random.default_rng(12)
    axes = ["mode", "depth", "queue"]
    cells = grid_of(mode=["a", "b", "c"], depth=[1, 2], queue=list(range(7)))
    cells = cells[rng.random(len(cells)) < 0.7]
    frame = measured(cells, noisy(rng, 1.0, lambda row, seed: 50 + row["depth"] * seed), 3)
    frame = frame[rng.random(len(frame)) < 0.8]
    rows = frame.merge(cells, on="cell")
    model = ols("value ~ " + " + ".join(f"C({name})" for name in [*axes, "seed"]), data=rows)
    squares = anova_lm(model.fit(), typ=2)["sum_sq"]
    found = variance_shares(frame, cells, axes, "val")["share"]
    assert list(found) == pytest.approx(list(squares / squares.sum()), rel=1e-9)


def test_shares_leave_out_cells_to_which_an_axis_does_not_apply():
    cells = cells_of(
        {"mode": "none", "heat": None, "depth": 1}, {"mode": "none", "heat": None, "depth": 2},
        *({"mode": "dense", "heat": h, "depth": d} for h in (0.1, 0.2) for d in (1, 2)),
    )  # fmt: skip
    rng = np.random.default_rng(6)
    frame = measured(cells, noisy(rng, 0.1, lambda row, seed: 50 + row["depth"]), 5)
    found = variance_shares(frame, cells, ["mode", "heat", "depth"], "val")
    assert list(found["source"]) == ["heat", "depth", "seed", "interactions and noise"]
    # An axis with one level leaves nothing out.
    found = variance_shares(frame, cells[cells["heat"] != 0.2], ["mode", "heat", "depth"], "val")
    assert list(found["source"]) == ["mode", "depth", "seed", "interactions and noise"]


def test_shares_of_designs_that_have_none():
    rng = np.random.default_rng(8)
    cells = grid_of(mode=["a", "b"], depth=[1])
    noise = noisy(rng, 1.0, lambda row, seed: 50)
    assert list(variance_shares(measured(cells, noise), cells, ["mode", "depth"], "val")) == SHARES
    told = variance_shares(measured(cells, noise), cells, ["mode", "depth"], "val")["source"]
    assert list(told) == ["mode", "seed", "interactions and noise"]
    # One axis follows from the other; no run is left for a residual; all are equal; no runs.
    follows = cells_of({"x": 1, "y": 10}, {"x": 2, "y": 20})
    assert variance_shares(measured(follows, noise), follows, ["x", "y"], "val").empty
    assert variance_shares(measured(cells, noise, 1), cells, ["mode"], "val").empty
    equal = measured(cells, lambda row, seed: 50.0)
    assert variance_shares(equal, cells, ["mode"], "val").empty
    assert variance_shares(equal.iloc[:0], cells, ["mode"], "val").empty
    # The mode explains everything.
    whole = measured(cells, lambda row, seed: 50.0 + (row["mode"] == "a"))
    shares = variance_shares(whole, cells, ["mode"], "val").set_index("source")["share"]
    assert shares["mode"] == pytest.approx(1)


def turning(rng, cells, turn, seeds=5):
    """Return rows in which b is better than a by 2, and worse by `turn` at the large queue; depth
    has no effect."""

    def mean(row, seed):
        gain = -turn if row["queue"] == 64 else 2.0
        return 50 + seed + gain * (row["mode"] == "b")

    return measured(cells, noisy(rng, 0.3, mean), seeds)


def test_a_planted_turn_is_found():
    rng = np.random.default_rng(9)
    cells = grid_of(mode=["a", "b"], queue=[0, 16, 64], depth=[1, 2])
    frame = turning(rng, cells, turn=3.0)
    (row,) = flips(frame, cells, ["mode", "queue", "depth"], "val").itertuples()
    assert (row.axis, row.a, row.b, row.other) == ("mode", "a", "b", "queue")
    assert (row.level1, row.difference1) == (64, pytest.approx(3, abs=0.6))  # a minus b
    assert row.level2 in (0, 16)
    assert row.difference2 == pytest.approx(-2, abs=0.6)
    assert row.low1 > 0 > row.high2
    at = marginals(frame, cells[cells["queue"] == 64], "mode", "val").iloc[0]  # b less a
    assert (row.low1, row.high1) == pytest.approx((-at["high"], -at["low"]))


def test_no_turn_is_found_where_there_is_none():
    rng, found = np.random.default_rng(10), 0
    cells = grid_of(mode=["a", "b"], queue=[0, 16, 64], depth=[1, 2])
    for _ in range(60):  # better everywhere, by different amounts
        frame = turning(rng, cells, turn=-rng.uniform(0, 3))
        found += len(flips(frame, cells, ["mode", "queue", "depth"], "val"))
    assert found == 0
    assert flips(frame.iloc[:0], cells, ["mode", "queue", "depth"], "val").empty
    assert flips(frame, cells, ["mode"], "val").empty


def test_no_turn_is_told_at_levels_of_an_axis_that_one_side_does_not_have():
    """Dense is better than none at one heat and worse at another, and none has no heat."""
    rng = np.random.default_rng(13)
    cells = cells_of(
        {"mode": "none", "heat": None},
        *({"mode": "dense", "heat": heat} for heat in (0.1, 0.2)),
    )
    means = {None: 50, 0.1: 53, 0.2: 47}
    frame = measured(cells, noisy(rng, 0.1, lambda row, seed: means[row["heat"]] + seed))
    assert (marginals(frame, cells, "heat", "val")["p_holm"] < 0.001).all()
    assert flips(frame, cells, ["mode", "heat"], "val").empty
