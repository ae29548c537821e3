"""Statistics over seeds: compared with scipy and statsmodels one by one, and in simulated sweeps."""

import gc
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from densevit.results.stats.power import MOST_SEEDS, seeds_needed
from densevit.results.stats.seeds import DIFFERENCES, differences, holm, iqm, paired, summary

pytestmark = pytest.mark.filterwarnings("error")


def frame_of(values, n=50_000):
    """Return tidy rows of {(cell, benchmark): values, one per seed}."""
    rows = [
        (f"{cell}{seed}", cell, seed, "finished", benchmark, "top1", float(value), n)
        for (cell, benchmark), each in values.items()
        for seed, value in enumerate(each)
    ]
    columns = ["run", "cell", "seed", "state", "benchmark", "metric", "value", "n"]
    return pd.DataFrame(rows, columns=columns)


def drawn(cells, seeds, *, std=0.5, shared=1.0, effect=0.0, benchmarks=1, rng=None):
    """Return accuracies of cells: 50, a part of the seed that all cells share, and noise; `effect`
    is added to all cells except the first, named base."""
    rng = rng or np.random.default_rng(0)
    common = rng.normal(0, shared, seeds)
    return {
        ("base" if cell == 0 else f"c{cell}", f"b{b}"): 50
        + common
        + rng.normal(0, std, seeds)
        + (effect if cell else 0.0)
        for cell in range(cells)
        for b in range(benchmarks)
    }


def against_base(values):
    return {cell: "base" for cell, _ in values if cell != "base"}


def test_each_number_is_that_of_scipy():
    rng = np.random.default_rng(3)
    values = drawn(4, 5, effect=0.6, benchmarks=3, rng=rng)
    frame = frame_of(values).sample(frac=1, random_state=0)
    means = summary(frame).set_index(["cell", "benchmark"])
    assert len(means) == len(values)
    for key, each in values.items():
        row, error = means.loc[key], scipy_stats.sem(each)
        interval = scipy_stats.t.interval(0.95, len(each) - 1, loc=each.mean(), scale=error)
        assert (row["mean"], row["std"]) == pytest.approx((each.mean(), each.std(ddof=1)))
        assert (row["low"], row["high"]) == pytest.approx(interval)
        assert row["n"] == 5
    found = differences(frame, against_base(values))
    assert len(found) == 9
    ps = []
    for row in found.itertuples():
        a, b = values[row.cell, row.benchmark], values["base", row.benchmark]
        test = scipy_stats.ttest_rel(a, b)
        interval = test.confidence_interval(0.95)
        assert (row.difference, row.p) == pytest.approx((np.mean(a - b), test.pvalue))
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
        assert row.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))
        ps.append(test.pvalue)
    assert found["p_holm"].tolist() == pytest.approx(multipletests(ps, method="holm")[1].tolist())


def test_only_seeds_in_common_are_compared():
    values = {("base", "val"): [50, 51, 52, 53], ("c1", "val"): [51, 52.2, 53.1, 54]}
    frame = frame_of(values)
    frame = frame[~((frame["cell"] == "c1") & (frame["seed"] == 0))]
    frame = frame[~((frame["cell"] == "base") & (frame["seed"] == 3))]
    (row,) = differences(frame, {"c1": "base", "gone": "base", "c2": "away"}).itertuples()
    assert (row.n, row.difference) == (2, pytest.approx(1.15))
    apart = frame[((frame["cell"] == "c1") & (frame["seed"] == 3)) | (frame["cell"] == "base")]
    assert differences(apart, {"c1": "base"}).empty


def test_verdicts():
    values = {
        ("base", "val"): [50, 51, 52, 53, 54],
        ("better", "val"): [52, 53.1, 53.9, 55, 56.1],
        ("same", "val"): [50.1, 50.9, 52, 53.1, 53.9],
        ("wild", "val"): [48, 54, 50, 56, 54],
    }
    rows = differences(frame_of(values), against_base(values)).set_index("cell")
    assert rows["verdict"].to_dict() == {
        "better": "established",
        "same": "equivalent",
        "wild": "too noisy",
    }
    spread = np.std([-2, 3, -2, 3, 0], ddof=1)
    # Two rows are not established: Holm's first step for them is at half the level.
    assert rows.loc["wild", "seeds_needed"] == seeds_needed(np.array([spread]), 1.0, 0.025)[0]
    assert rows.loc[["better", "same"], "seeds_needed"].isna().all()
    # What is alike within a point is open to who asks for a tenth.
    strict = differences(frame_of(values), against_base(values), smallest_effect=0.1).set_index(
        "cell"
    )
    assert strict.loc["same", "verdict"] == "too noisy"


def test_one_seed_and_nan_say_so():
    values = {("base", "val"): [50], ("c1", "val"): [52]}
    (row,) = differences(frame_of(values), {"c1": "base"}).itertuples()
    assert (row.n, row.difference, row.verdict) == (1, 2.0, "single")
    assert all(math.isnan(v) for v in (row.low, row.high, row.p, row.p_holm, row.seeds_needed))
    values = {("base", "val"): [50, 51, 52], ("c1", "val"): [52, math.nan, 54]}
    (row,) = differences(frame_of(values), {"c1": "base"}).itertuples()
    assert (row.n, row.verdict) == (3, "undefined")
    assert math.isnan(row.difference)
    cells = summary(frame_of(values)).set_index("cell")
    assert math.isnan(cells.loc["c1", "mean"])
    assert cells.loc["base", "mean"] == 51


def test_seeds_that_agree_to_the_last_picture_do_not_decide_by_that():
    # One image of 500 more, twice: without the rounding, std 0 and p 0.
    values = {("base", "val"): [50.0, 50.4], ("c1", "val"): [50.2, 50.6]}
    (row,) = differences(frame_of(values, n=500), {"c1": "base"}).itertuples()
    assert row.verdict != "established"
    # Two accuracies over 500 images, each rounded to 0.2 points, and two seeds.
    assert row.std == pytest.approx(0, abs=1e-9)
    half = scipy_stats.t.ppf(0.975, 1) * 0.2 / math.sqrt(6) / math.sqrt(2)
    assert (row.low, row.high) == pytest.approx((0.2 - half, 0.2 + half))
    assert row.effect == pytest.approx(math.sqrt(6))
    equal = {("base", "val"): [50.0, 50.4, 51.0], ("c1", "val"): [50.0, 50.4, 51.0]}
    (row,) = differences(frame_of(equal, n=500), {"c1": "base"}).itertuples()
    assert (row.difference, row.std, row.effect, row.p, row.verdict) == (0, 0, 0, 1, "equivalent")
    assert -0.5 < row.low < 0 < row.high < 0.5
    # A metric that is no share of images has no rounding.
    exact = frame_of(equal, n=500).assign(metric="nll")
    (row,) = differences(exact, {"c1": "base"}, "nll").itertuples()
    assert (row.low, row.high, row.p, row.verdict) == (0, 0, 1, "equivalent")


def test_what_says_nothing_is_not_counted_in_the_correction():
    rng = np.random.default_rng(4)
    values = drawn(3, 5, effect=0.6, rng=rng)
    alone = differences(frame_of(values), against_base(values))
    more = values | {("c7", "b0"): np.array([50.0]), ("c8", "b0"): np.full(5, math.inf)}
    found = differences(frame_of(more), against_base(more)).set_index("cell")
    assert found["verdict"][["c7", "c8"]].to_dict() == {"c7": "single", "c8": "undefined"}
    assert found["p_holm"][["c7", "c8"]].isna().all()
    assert list(found["p_holm"][["c1", "c2"]]) == pytest.approx(list(alone["p_holm"]))
    assert math.isnan(summary(frame_of(more)).set_index("cell").loc["c8", "mean"])


def test_other_metrics_and_columns_of_categories_change_nothing():
    """As `gather` returns them."""
    rng = np.random.default_rng(2)
    values = drawn(3, 4, benchmarks=2, rng=rng)
    frame = frame_of(values)
    both = pd.concat([frame, frame.assign(metric="nll", value=1.0)], ignore_index=True)
    words = ["run", "cell", "state", "benchmark", "metric"]
    both = both.astype(dict.fromkeys(words, "category"))
    wants = differences(frame, against_base(values))
    found = differences(both, against_base(values)).astype({"cell": str, "benchmark": str})
    pd.testing.assert_frame_equal(found, wants, check_dtype=False)
    assert len(summary(both)) == 2 * len(values)


def test_nothing_gives_empty_tables():
    frame = frame_of({("base", "val"): [50, 51]})
    for found in (
        differences(frame, {}), differences(frame.iloc[:0], {"a": "base"}),
        differences(frame, {"a": "base"}, "other"),
    ):  # fmt: skip
        assert list(found) == DIFFERENCES
        assert found.empty
    assert summary(frame.iloc[:0]).empty


def test_paired_samples_are_those_of_scipy():
    rng = np.random.default_rng(6)
    samples = [rng.normal(0.5, 1, size) for size in (2, 3, 9)]
    found = paired([*samples, np.array([1.0]), np.empty(0), np.array([1.0, math.nan])], 0.0)
    for row, each in zip(found.itertuples(), samples, strict=False):
        test = scipy_stats.ttest_1samp(each, 0)
        interval = test.confidence_interval(0.95)
        wants = each.mean(), interval.low, interval.high, test.pvalue
        assert (row.difference, row.low, row.high, row.p) == pytest.approx(wants)
    assert found["difference"].isna().tolist() == [False] * 4 + [True] * 2
    assert found["p"].isna().tolist() == [False] * 3 + [True] * 3
    many = paired(list(rng.normal(1, 2, (3000, 4))), 0.0)
    assert 0.93 < (many["low"].le(1) & many["high"].ge(1)).mean() < 0.97


@pytest.mark.parametrize("std", [0.2, 0.7, 1.5, 6.0])
@pytest.mark.parametrize("difference", [0.5, 1.0])
def test_seeds_needed_are_those_of_statsmodels(std, difference):
    wants = TTestPower().solve_power(effect_size=difference / std, power=0.8, alpha=0.05)
    assert seeds_needed(np.array([std]), difference) == max(2, math.ceil(np.squeeze(wants)))


def test_seeds_needed_at_the_ends():
    assert list(seeds_needed(np.array([0.0, 1e6]), 1.0)) == [2, MOST_SEEDS]
    with pytest.raises(ValueError, match="above 0"):
        seeds_needed(np.array([1.0]), 0.0)


def test_chance_is_called_a_difference_in_a_twentieth_of_made_up_sweeps(monkeypatch):
    # multipletests collects garbage at each call: a tenth of a second in a large process.
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
    # Sweeps of three cells against a baseline on three benchmarks, four seeds; all in one frame.
    rng, values = np.random.default_rng(7), {}
    for sweep in range(400):
        each = drawn(4, 4, benchmarks=3, rng=rng)
        values |= {(cell, f"{sweep}-{benchmark}"): v for (cell, benchmark), v in each.items()}
    found = differences(frame_of(values), against_base(values))
    by_sweep = found.groupby(found["benchmark"].str.partition("-")[0])["p"]
    called = sum((holm(p) < 0.05).any() for _, p in by_sweep)
    uncorrected = sum((p < 0.05).any() for _, p in by_sweep)
    # 5 % of 400 are 20; the nine comparisons share the baseline, so Holm's correction is
    # conservative.
    assert 0 < called <= 29
    assert uncorrected > 60, "without correction the test would fail"


@pytest.mark.parametrize("seeds", [3, 6])
def test_a_planted_difference_is_found_as_often_as_the_power_says(seeds):
    std, effect = 0.5, 0.9
    spread = std * math.sqrt(2)
    power = TTestPower().power(effect / spread, seeds, 0.05)
    # One sweep per benchmark: one comparison each, which needs no correction.
    values = drawn(2, seeds, std=std, effect=effect, benchmarks=1000, rng=np.random.default_rng(11))
    found = (differences(frame_of(values), against_base(values))["p"] < 0.05).mean()
    assert found == pytest.approx(power, abs=3 * math.sqrt(power * (1 - power) / 1000))


def test_intervals_hold_the_truth_in_95_of_100():
    rng, repeats, seeds = np.random.default_rng(5), 3000, 4
    values = {("base", f"b{n}"): rng.normal(50, 1, seeds) for n in range(repeats)}
    values |= {("c1", f"b{n}"): rng.normal(51, 1, seeds) for n in range(repeats)}
    frame = frame_of(values)
    means = summary(frame)
    truth = means["cell"].map({"base": 50.0, "c1": 51.0})
    assert 0.93 < means["low"].le(truth).mul(means["high"].ge(truth)).mean() < 0.97
    found = differences(frame, {"c1": "base"})
    assert 0.93 < (found["low"].le(1) & found["high"].ge(1)).mean() < 0.97


def test_the_interquartile_mean_is_not_moved_by_a_run_that_went_wrong():
    values = np.array([70, 71, 72, 73, 74, 75, 76, 3.0])
    middle, low, high = iqm(values)
    assert middle == pytest.approx(np.mean([71, 72, 73, 74]))
    assert low < middle < high
    assert iqm([5.0] * 6) == (5, 5, 5)
    for none in ([1, 2, 3], [70, 71, 72, 73, math.nan]):  # which is not dropped
        assert all(math.isnan(v) for v in iqm(none))
