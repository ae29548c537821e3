import math

import pandas as pd
import pytest

from densevit.results.collect.cells import cells_frame
from densevit.results.collect.numbers import NOTHING_MEASURED
from densevit.results.report import comparison_sentence, doubts, phrases, sentences
from densevit.results.report.verdict_grid import verdict_grid
from densevit.results.tables import contrast_names
from densevit.sweep.baseline import baselines

NAN = math.nan
COLUMNS = ["cell", "baseline", "benchmark", "metric", "n", "difference", "std", "low", "high",
           "effect", "p", "p_holm", "verdict", "seeds_needed"]  # fmt: skip


def row(verdict="too noisy", difference=0.5, low=-0.4, high=1.4, **given):
    """Return a row of `seeds.differences`."""
    values = {
        "cell": "c", "baseline": "b", "benchmark": "shapes-sketch", "metric": "top1", "n": 5,
        "difference": difference, "std": 0.7, "low": low, "high": high, "effect": 0.7, "p": 0.2,
        "p_holm": 0.4, "verdict": verdict, "seeds_needed": 9,
    }  # fmt: skip
    return {**values, **given}


def frame(*rows):
    return pd.DataFrame(list(rows), columns=COLUMNS)


def texts(*rows, names=None, smallest_effect=1.0, over_images=None):
    names = {"c": "dense − none"} if names is None else names
    return comparison_sentence.sentences(frame(*rows), names, smallest_effect, over_images)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            row("established", 1.8, 0.9, 2.7, p_holm=0.004),
            "dense − none on shapes-sketch: +1.8 points, 95 % CI [0.9, 2.7], 5 seeds, paired: "
            "a difference is established (Holm-corrected p = 0.004).",
        ),
        (
            row("too noisy", 0.5, -0.4, 1.4),
            "dense − none on shapes-sketch: +0.5 points, 95 % CI [−0.4, 1.4], 5 seeds, paired: "
            "no difference is established; detecting 1.0 points with 80 % power takes 4 more seeds.",
        ),
        (
            row("equivalent", 0.1, -0.1, 0.27),
            "dense − none on shapes-sketch: +0.1 points, 95 % CI [−0.1, 0.3], 5 seeds, paired: "
            "no difference is established; with 95 % confidence it is under 0.3 points.",
        ),
        (
            row("single", 0.8, NAN, NAN, n=1, std=NAN, p_holm=NAN, seeds_needed=NAN),
            "dense − none on shapes-sketch: +0.8 points; one seed supports no conclusion across "
            "seeds.",
        ),
        (
            row("single", NAN, NAN, NAN, n=0, std=NAN),
            "dense − none on shapes-sketch: no seed has finished in both cells yet.",
        ),
    ],
)
def test_a_row_in_words(given, text):
    assert texts(given) == [text]


def test_one_seed_has_pictures_to_speak_of():
    over_images = {("c", "shapes-sketch"): (0.8, -0.6, 2.2)}
    alone = row("single", 0.8, NAN, NAN, n=1, std=NAN)
    assert texts(alone, over_images=over_images)[0].endswith("over images alone [−0.6, 2.2].")


@pytest.mark.parametrize("high", [0.301, 0.349, 0.2999])
def test_a_bound_is_never_smaller_than_the_interval(high):
    text = texts(row("equivalent", 0.1, -0.1, high))[0]
    bound = float(text.rpartition("under ")[2].removesuffix(" points."))
    assert high <= bound < high + 0.1 + 1e-9


def test_a_bound_counts_both_ends_of_the_interval():
    assert texts(row("equivalent", -0.1, -0.72, 0.2))[0].endswith("under 0.8 points.")


def test_many_comparisons_are_not_forgotten():
    """The row's own interval excludes zero, and still nothing is decided."""
    for verdict in ("too noisy", "equivalent"):
        text = texts(row(verdict, 0.5, 0.1, 0.9))[0]
        assert "a difference is established" not in text
        assert (
            "no difference is established, although the interval excludes zero (Holm-corr" in text
        )
        assert "ruled out" not in text
        assert "more seed" not in text


def test_seeds_enough_and_still_open():
    text = texts(row("too noisy", 0.8, -0.1, 1.7, seeds_needed=4))[0]
    assert "more seed" not in text
    assert "neither zero nor a difference of 1.0 points is ruled out" in text
    assert "takes 1 more seed." in texts(row("too noisy", seeds_needed=6))[0]
    assert texts(row("too noisy", seeds_needed=NAN))[0].endswith(
        "paired: no difference is established."
    )
    assert "vary too much" in texts(row("too noisy", seeds_needed=10_000))[0]


def test_numbers_that_are_none_and_numbers_that_are_equal():
    assert "not a number in at least one of 5" in texts(row("undefined", NAN, NAN, NAN))[0]
    equal = row("equivalent", 0.0, 0.0, 0.0, std=0.0, p_holm=1.0)
    assert texts(equal)[0].endswith("equal in every seed.")


def test_small_ends_are_not_rounded_to_zero():
    """An established difference whose interval reads [0.0, ...] would look like none."""
    text = texts(row("established", 0.4, 0.03, 0.77, p_holm=0.03))[0]
    assert "+0.40 points, 95 % CI [0.03, 0.77]" in text


def test_the_order_is_what_is_worth_telling():
    rows = [
        row("too noisy", 5.0, benchmark="a"), row("established", -0.9, -1, -0.8, benchmark="b"),
        row("single", NAN, NAN, NAN, n=0, benchmark="c"), row("equivalent", 0.0, benchmark="d"),
        row("established", 2.0, 1, 3, benchmark="e"),
    ]  # fmt: skip
    order = [text.partition(":")[0] for text in texts(*rows, names={"c": "x"})]
    assert order == [f"x on {benchmark}" for benchmark in "ebdac"]


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0, "p < 0.001"), (0.0009, "p < 0.001"), (0.0042, "p = 0.004"), (0.0504, "p = 0.050"),
     (0.25, "p = 0.25"), (1.0, "p = 1.00"), (NAN, "p unknown")],
)  # fmt: skip
def test_p_in_words(p, text):
    assert phrases.p_phrase(p) == text


def test_names_of_comparisons(sweep):
    plan = sweep(
        "grid: {cl_mode: [none, dense], temperature: [0.1, 0.2], epochs: [10, 20]}",
        "baseline: {cl_mode: none}",
    )
    names = contrast_names.contrasts(cells_frame(plan), baselines(plan), plan.axes)
    assert sorted(names.values()) == sorted(
        f"dense − none (temperature {t}, epochs {e})" for t in (0.1, 0.2) for e in (10, 20)
    )


def test_a_line_for_each_verdict():
    names = {"c": "dense − none", "d": "global − none"}
    rows = frame(
        row("established", 1.8, 0.9, 2.7), row("established", -0.8, -1.2, -0.4, cell="d"),
        row("hint", 1.1, 0.1, 2.1, benchmark="val"), row("equivalent", 0.1, benchmark="a"),
        row("too noisy", 0.5, benchmark="val", cell="d"),
        row("too noisy", 0.2, benchmark="a", cell="d", seeds_needed=30),
        row("single", 0.2, benchmark="b", n=1), row("undefined", NAN, benchmark="b", cell="d"),
    )  # fmt: skip
    assert sentences.verdicts(rows, names, 1.0) == [
        "Established (8 comparisons with the baseline, 1 to 5 seeds): dense − none on "
        "shapes-sketch (+1.8 [0.9, 2.7]); global − none on shapes-sketch (−0.8 [−1.2, −0.4]).",
        "A hint, no evidence: dense − none on val (+1.1 [0.1, 2.1]). It would count alone; among 8 "
        "comparisons chance often produces one.",
        "Equivalent, surely within ±1.0 points: dense − none on a (+0.1 [−0.4, 1.4]).",
        "Too noisy to say: 2 of 8 comparisons. To establish 1.0 points takes 4 to 25 more seeds, "
        "by the spread so far.",
        "One seed: 1 of 8 comparisons; no conclusion across seeds.",
        "Not a number: 1 of 8 comparisons, since a run diverged.",
    ]
    (nothing, _) = sentences.verdicts(frame(row("too noisy")), names, 1.0)
    assert nothing == "Established: no difference (1 comparison with the baseline, 5 seeds)."
    assert "No comparison" in sentences.verdicts(frame(), names, 1.0)[0]


def test_seeds_that_nobody_has():
    few, many = row("too noisy"), row("too noisy", benchmark="val", seeds_needed=10_000)
    both = sentences.verdicts(frame(few, many), {}, 1.0)[-1]
    assert "takes 4 to more than 200 more seeds" in both
    only = sentences.verdicts(frame(many), {}, 1.0)[-1]
    assert only.endswith("To establish 1.0 points takes more than 200 more seeds.")


def test_the_grid_has_a_sign_and_a_number_for_each_verdict():
    rows = frame(
        row("established", 1.84, benchmark="val"), row("established", -0.9),
        row("hint", 1.1, cell="d"), row("hint", -1.1, cell="d", benchmark="val"),
        row("equivalent", -0.04, cell="e"), row("too noisy", 0.5, cell="e", benchmark="val"),
        row("single", 0.2, n=1, cell="f"), row("undefined", NAN, cell="f", benchmark="val"),
        row("established", 3.0, cell="g"),
    )  # fmt: skip
    grid = verdict_grid(rows, dict(zip("gfedc", "GFEDC", strict=True)), 1.0)
    assert grid.head == ["comparison", "val", "shapes-sketch"]
    assert grid.rows == [
        ["G", "missing", "↑ +3.0"], ["F", "nan", "+0.2"], ["E", "? +0.5", "≈ 0.0"],
        ["D", "↓? −1.1", "↑? +1.1"], ["C", "↑ +1.8", "↓ −0.9"],
    ]  # fmt: skip
    assert grid.tones == {
        (0, 2): "better", (2, 1): "noisy", (2, 2): "equal", (3, 1): "maybe worse",
        (3, 2): "maybe better", (4, 1): "better", (4, 2): "worse",
    }  # fmt: skip
    assert "≈: equivalent (the 95 % interval lies within ±1)" in grid.note
    loss = verdict_grid(frame(row("established", -0.2, metric="nll")), {"c": "C"}, 0.02)
    assert (loss.rows, loss.tones) == ([["C", "↓ −0.200"]], {(0, 1): "better"})


def test_effects_of_axes_averaged_over_the_others():
    rows = [("cl_mode", "dense", "none", "a", 2.0, 1.0, 3.0, 0.01),
            ("cl_mode", "dense", "none", "b", -3.0, -4.0, -2.0, 0.01),
            ("cl_mode", "global", "none", "a", 0.5, -1.0, 2.0, 0.6),
            ("temperature", 0.2, 0.1, "a", 0.1, -1.0, 1.2, 1.0)]  # fmt: skip
    columns = ["axis", "level", "reference", "benchmark", "difference", "low", "high", "p_holm"]
    assert sentences.averaged(pd.DataFrame(rows, columns=columns)) == [
        "Effect of cl_mode, averaged over the other axes: dense − none on b (−3.0 [−4.0, −2.0]), a (+2.0 [1.0, 3.0]).",
        "Averaged over the other axes, no effect is established: temperature.",
    ]
    assert sentences.averaged(pd.DataFrame()) == []


def test_many_test_sets_of_a_cell_are_counted():
    rows = frame(*(row("established", 2.0, 1.0, 3.0, benchmark=name) for name in "abcde"))
    (line,) = sentences.verdicts(rows, {"c": "dense − none"}, 1.0)
    assert line.endswith("c (+2.0 [1.0, 3.0]) and 2 other sets.")


def test_what_is_missing():
    coverage = pd.DataFrame(
        [("1", "x", "dense", 0, "finished", True, ""), ("2", "x", "dense", 1, "failed", False, ""),
         ("3", "y", "none", 0, "pending", False, "")],
        columns=["run", "cell", "label", "seed", "state", "measured", "message"],
    )  # fmt: skip
    assert doubts.missing(coverage) == [
        "1 of 3 planned runs have results; 1 failed, 1 pending.",
        "Cells without any result: none.",
        "Cells with fewer seeds than planned: dense (1 of 2).",
    ]
    odd = coverage.assign(state="finished", measured=False, message=["gone", NOTHING_MEASURED, ""])
    assert doubts.missing(odd)[0] == (
        "0 of 3 planned runs have results; 2 finished without readable results, "
        "1 finished on images without labels."
    )
    assert doubts.missing(coverage.iloc[:1]) == [
        "All planned runs (1) are finished and have results."
    ]


@pytest.mark.parametrize(
    ("beyond", "text"),
    [
        (row("established", 1.2, 0.6, 1.8), "Established beyond clean accuracy"),
        (row("too noisy", 0.3, -0.5, 1.1), "Not established beyond clean accuracy"),
        (row("established", -1.0, -1.5, -0.5), "Smaller than clean accuracy predicts"),
    ],
)
def test_whether_a_gain_is_only_clean_accuracy(beyond, text):
    gain = row("established", 1.8, 0.9, 2.7)
    (line,) = sentences.beyond_clean(frame(gain), frame(beyond), {"c": "dense − none"}, True)
    assert line.startswith(text)
    assert "dense − none on shapes-sketch (+1.8 [0.9, 2.7], of which " in line
    assert "beyond what clean accuracy predicts" in line


def test_nothing_is_said_beyond_clean_of_one_seed():
    gain = row("established", 1.8, 0.9, 2.7)
    one = row("single", 1.0, NAN, NAN, n=1)
    assert sentences.beyond_clean(frame(gain), frame(one), {}, False) == []


def test_collapse_is_told_by_cell():
    last = pd.DataFrame({"cell": ["c", "c", "d"], "seed": [0, 3, 0], "value": [0.0, 1.0, 0.0]})
    (line,) = doubts.collapsed(last, {"c": "dense · 0.1"})
    assert line.startswith(
        "The contrastive features of dense · 0.1 collapsed in 1 of 2 seeds (seed 3)."
    )


def test_long_lists_are_counted():
    assert phrases.listed(["a", "b", "c"], most=2) == "a; b; and 1 more"
    assert phrases.listed(["a", "b"], most=2) == "a; b"


def test_uneven_clipping_is_told_and_even_clipping_is_not():
    def logged(**shares):
        rows = [(cell, share) for cell, values in shares.items() for share in values]
        return pd.DataFrame(rows, columns=["cell", "value"])

    (said,) = doubts.clipped(logged(a=[0.7, 0.3], b=[0.2], c=[0.4]), {"a": "none", "b": "dense"})
    assert said.startswith("Gradients were clipped in 50% of the steps of none and in 20% of those")
    assert doubts.clipped(logged(a=[0.5], b=[0.35]), {}) == []
    assert doubts.clipped(logged(a=[0.5]), {}) == []


def numbers(*rows):
    columns = ["cell", "seed", "benchmark", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def test_cells_and_seeds_with_the_same_numbers_are_told():
    rows = [(cell, seed, "val", metric, value + seed / 7 + (cell == "b") * (metric == "nll") / 1e6)
            for cell in "abc" for seed in (0, 1) for metric, value in (("top1", 50.0), ("nll", 2.1))]  # fmt: skip
    labels = {"a": "none", "b": "dense", "c": "global"}
    (line,) = doubts.identical(numbers(*rows), labels)
    assert line.startswith("The numbers of none and global are identical in every seed")
    still = numbers(*(("a", seed, "val", "top1", 50.0) for seed in (0, 1, 2)))
    assert doubts.identical(still, labels) == [
        "All seeds have the same numbers in none: is the seed used?"
    ]


def test_means_over_the_survivors_of_failures_are_told():
    coverage = pd.DataFrame(
        [("1", "x", "dense", 0, "finished", True), ("2", "x", "dense", 1, "failed", False),
         ("3", "y", "none", 0, "failed", False), ("4", "z", "global", 0, "finished", True)],
        columns=["run", "cell", "label", "seed", "state", "measured"],
    )  # fmt: skip
    assert doubts.survivors(coverage) == [
        "Means over the survivors of failed runs may be too good: dense (1 failed)."
    ]


def test_a_pair_without_a_seed_in_common_is_told():
    rows = numbers(("a", 0, "val", "top1", 1.0), ("b", 1, "val", "top1", 1.0),
                   ("c", 1, "val", "top1", 1.0))  # fmt: skip
    told = doubts.unpaired({"b": "a", "c": "b", "d": "a"}, rows, {"b": "dense − none"})
    assert told == ["Not compared, since the two cells have no seed in common: dense − none."]
