"""Differences over seeds and images: compared with plain resampling, and their coverage."""

import numpy as np
import pytest

from densevit.evaluate.predictions import ClassPredictions, MaskPredictions, write_predictions
from densevit.results.stats.bootstrap import difference, interval, paired_hits
from densevit.utils.errors import UserError


def drawn(rng, seeds, pictures, *, gain=2.0, of_seed=0.0):
    """Return hits of two cells: some images are hard for both; a is better by `gain` points on
    average over seeds, and `of_seed` is the std of the gain."""
    chance = rng.uniform(0.3, 0.7, pictures)
    better = (gain + rng.normal(0, of_seed, (seeds, 1))) / 100
    draws = rng.random((2, seeds, pictures))
    return draws[0] < chance + better, draws[1] < chance


def plainly(a, b, rng, resamples=4000):
    each = a.astype(float) - b
    seeds, pictures = each.shape
    means = [
        each[np.ix_(rng.integers(seeds, size=seeds), rng.integers(pictures, size=pictures))].mean()
        for _ in range(resamples)
    ]
    return 100 * np.percentile(means, [2.5, 97.5])


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_it_is_plain_resampling(seeds):
    rng = np.random.default_rng(1)
    a, b = drawn(rng, seeds, 300, of_seed=4)
    found, low, high = difference(a, b)
    assert found == pytest.approx(100 * (a.mean() - b.mean()))
    wants = plainly(a, b, rng)
    assert (low, high) == pytest.approx(tuple(wants), abs=0.12 * (wants[1] - wants[0]))
    assert (found, low, high) == difference(a, b)  # the same draws each time
    assert (-found, -high, -low) == pytest.approx(difference(b, a), abs=0.1 * (high - low))


def test_a_cell_alone_is_a_difference_to_nothing():
    a, _ = drawn(np.random.default_rng(5), 3, 400)
    assert interval(a) == difference(a, np.zeros_like(a))
    with pytest.raises(ValueError, match="one or more"):
        interval(np.zeros((0, 4), bool))


def test_equal_predictions_differ_by_nothing():
    a, _ = drawn(np.random.default_rng(2), 3, 50)
    assert difference(a, a) == (0, 0, 0)


def test_one_seed_is_over_pictures_alone():
    rng = np.random.default_rng(3)
    a, b = drawn(rng, 1, 2000)
    each = 100 * (a.astype(float) - b)[0]
    error = each.std() / np.sqrt(each.size)
    found, low, high = difference(a, b)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert low < found < high


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        difference(np.zeros((2, 5), bool), np.zeros((2, 6), bool))
    with pytest.raises(ValueError, match="one shape"):
        difference(np.zeros((2, 0), bool), np.zeros((2, 0), bool))


def coverage(seeds, pictures, of_seed, repeats=200):
    rng, held = np.random.default_rng(4), 0
    for _ in range(repeats):
        _, low, high = difference(*drawn(rng, seeds, pictures, of_seed=of_seed))
        held += low <= 2 <= high
    return held / repeats


def test_how_often_the_interval_holds_the_truth(monkeypatch):
    """Coverage as `difference` describes it: too high if images decide, too low with few varying
    seeds."""
    monkeypatch.setattr("densevit.results.stats.bootstrap.RESAMPLES", 500)
    assert 0.91 < coverage(1, 500, 0.0) < 0.985
    assert coverage(4, 500, 0.0, 80) > 0.96
    assert 0.60 < coverage(3, 3000, 8.0) < 0.86


CLASSES = ("cat", "dog", "owl")


def answers(right, samples):
    """Return predictions for images with these ids; `right` are the ids classified correctly."""
    labels = np.array([int(sample[1:]) % 3 for sample in samples], np.int32)
    wrong = np.array([sample not in right for sample in samples])
    first = (labels + wrong) % 3
    top = np.stack([first, (first + 1) % 3, (first + 2) % 3], axis=1).astype(np.int32)
    return ClassPredictions(
        "val", CLASSES, samples, labels, top, np.full(top.shape, 1 / 3, np.float32),
        np.ones(len(samples), np.float32), None, {},
    )  # fmt: skip


@pytest.fixture
def plan(sweep):
    return sweep("seeds: [0, 1, 2]", "grid: {cl_mode: [none, global]}")


def file_of(plan, place, seed):
    """Return the predictions file of a cell's run."""
    cell = plan.grid.cells[place].cell
    run = next(run for run in plan.runs if (run.cell, run.seed) == (cell, seed))
    return plan.run_folder(run).predictions_file("val")


def kept(plan, place, seed, right, samples):
    file = file_of(plan, place, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(answers(right, samples), file)
    return file


def test_runs_are_matched_by_seed_and_by_picture(plan):
    kept(plan, 0, 0, {"p0", "p1"}, ["p0", "p1", "p2", "p3"])
    kept(plan, 0, 2, {"p3"}, ["p3", "p2", "p1", "p0"])
    kept(plan, 1, 1, {"p0"}, ["p0", "p1", "p2", "p3"])
    kept(plan, 1, 2, {"p0", "p3"}, ["p1", "p0", "p3", "p2"])
    a, b = (cell.cell for cell in plan.grid.cells)
    ours, theirs = paired_hits(plan, a, b, "val")  # both have only seed 2
    assert ours.tolist() == [[False, False, False, True]]
    assert theirs.tolist() == [[True, False, False, True]]
    assert paired_hits(plan, a, b, "other") is None


def test_several_seeds_stand_in_their_order(plan):
    for seed in (2, 0, 1):
        kept(plan, 0, seed, {f"p{seed}"}, ["p0", "p1", "p2"])
        kept(plan, 1, seed, set(), ["p0", "p1", "p2"])
    ours, theirs = paired_hits(plan, *(cell.cell for cell in plan.grid.cells), "val")
    assert ours.tolist() == np.eye(3, dtype=bool).tolist()
    assert not theirs.any()


@pytest.mark.parametrize(
    "others", [["p0", "p1", "p9"], ["p0", "p1"], ["p0", "p1", "p1"], ["p0", "p1", "p2", "p2"]]
)
def test_other_pictures_are_refused(plan, others):
    kept(plan, 0, 0, set(), ["p0", "p1", "p2"])
    file = kept(plan, 1, 0, set(), others)
    with pytest.raises(UserError, match="other images") as caught:
        paired_hits(plan, *(cell.cell for cell in plan.grid.cells), "val")
    assert str(file) in str(caught.value)


def test_a_file_that_is_none_is_refused_and_areas_have_no_hits(plan):
    cells = [cell.cell for cell in plan.grid.cells]
    kept(plan, 0, 0, set(), ["p0"])
    file = kept(plan, 1, 0, set(), ["p0"])
    pixels = np.ones((1, 3), np.int32)
    write_predictions(MaskPredictions("val", CLASSES, ["p0"], pixels, pixels, pixels), file)
    assert paired_hits(plan, *cells, "val") is None
    file.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read"):
        paired_hits(plan, *cells, "val")
