import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import linregress

from densevit.results.stats.reference_models import SHIPPED, benchmarks_of, read_references
from densevit.results.stats.robustness import (
    EFFECTIVE,
    as_references,
    comparable,
    effective,
    fit_line,
)
from densevit.utils.errors import UserError


def on_line(clean, slope, intercept):
    """Return percentages on the line for given percentages."""
    return 100 * expit(slope * logit(np.asarray(clean) / 100) + intercept)


def frame_of(*rows):
    return pd.DataFrame(rows, columns=["run", "benchmark", "metric", "value"])


def write(folder, *lines):
    path = folder / "mine.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def by_place(table):
    return {(row.run, row.benchmark): row for row in table.itertuples()}


def test_a_line_is_recovered_from_points_on_it():
    clean = np.array([35.0, 50.0, 62.0, 71.0, 88.0])
    line = fit_line(clean, on_line(clean, 1.3, -0.8))
    assert (line.slope, line.intercept) == pytest.approx((1.3, -0.8), abs=1e-12)
    assert line.n == 5
    assert line.r2 == pytest.approx(1)
    assert line.predict([50.0, 71.0]) == pytest.approx(on_line([50.0, 71.0], 1.3, -0.8))


def test_a_line_through_scattered_points_is_that_of_scipy():
    chance = np.random.default_rng(3)
    clean = chance.uniform(20, 90, 25)
    shifted = 100 * expit(0.9 * logit(clean / 100) - 1 + chance.normal(0, 0.3, 25))
    wanted = linregress(logit(clean / 100), logit(shifted / 100))
    line = fit_line([*clean, math.nan, 40.0], [*shifted, 50.0, math.nan])
    assert line.n == 25
    assert line.slope == pytest.approx(wanted.slope, rel=1e-10)
    assert line.intercept == pytest.approx(wanted.intercept, rel=1e-10)
    assert line.r2 == pytest.approx(wanted.rvalue**2, rel=1e-10)


def test_accuracies_of_0_and_100_percent_are_half_a_picture_away():
    line = fit_line([0.0, 50.0, 100.0], [0.0, 50.0, 100.0], images=200)
    assert (line.slope, line.intercept) == pytest.approx((1, 0), abs=1e-12)
    # 0 % of 200 images counts as 0.25 %
    same = fit_line([0.25, 50.0, 60.0], [10.0, 20.0, 30.0])
    assert fit_line([0.0, 50.0, 60.0], [10.0, 20.0, 30.0], images=200) == pytest.approx(same)


def test_a_line_is_refused_to_too_few_or_equal_models():
    with pytest.raises(UserError, match="at least 3 reference models, found 2"):
        fit_line([50.0, 60.0, 70.0], [40.0, 50.0, math.nan])
    with pytest.raises(UserError, match="different clean accuracy, found 3 alike"):
        fit_line([50.0] * 3, [40.0, 50.0, 60.0])


def test_a_line_predicts_by_hand():
    # odds on the benchmark are a quarter of the clean odds: 50 % -> 20 %, 80 % -> 50 %
    line = fit_line([50.0, 80.0, 20.0], [20.0, 50.0, 100 / 17])
    assert line.predict([50.0, 80.0]).tolist() == pytest.approx([20.0, 50.0])


def test_the_shipped_models_are_plausible():
    models = read_references()
    assert 40 <= len(models) <= 70
    assert models["model"].is_unique
    numbers = models.drop(columns="model")
    assert (numbers.isna() | numbers.ge(0) & numbers.le(100)).all(axis=None)
    # only the network that -A was selected against lacks a number, its own there
    lacking = models.loc[numbers.isna().any(axis=1), "model"]
    assert lacking.tolist() == ["resnet50.tv_in1k"]
    assert numbers.isna().sum().sum() == models["imagenet-a"].isna().sum() == 1
    for benchmark in ("imagenet-a", "imagenet-r"):
        clean = models[f"{benchmark}-clean"]
        assert (models[benchmark].fillna(0) < clean).all()
        assert (clean > models["imagenet"]).all()  # one of 200 is easier than one of 1000
    assert (models["imagenet-v2"] < models["imagenet"]).all()
    assert (models["imagenet-real"] > models["imagenet"]).all()
    assert models["imagenet"].max() - models["imagenet"].min() > 25


def test_the_shipped_figures_are_whole_numbers_of_pictures():
    """Most wrong digits would not be a whole number: -A has 7,500 images, -R 30,000."""
    models = read_references()
    for name, size in {"imagenet-a": 7_500, "imagenet-r": 30_000}.items():
        hits = models[name].dropna() * size / 100
        assert (100 * (hits - hits.round()).abs() / size).max() < 0.0006, name


def test_known_figures_of_the_shipped_models():
    """torchvision publishes 69.758 % for its ResNet-18, 76.130 % for its ResNet-50."""
    models = read_references().set_index("model")["imagenet"]
    assert models["resnet18.tv_in1k"] == pytest.approx(69.758, abs=0.01)
    assert models["resnet50.tv_in1k"] == pytest.approx(76.130, abs=0.01)


def test_the_lines_of_the_shipped_models():
    models = read_references()
    assert fit_line(models["imagenet"], models["imagenet-v2"]).r2 > 0.9
    # a ResNet-50 of 76.1 % loses about 12 points on V2 (Recht et al. 2019: 63.3 %)
    line = fit_line(models["imagenet"], models["imagenet-v2"])
    assert 76.1 - line.predict(76.1) == pytest.approx(12, abs=1.5)


def test_runs_against_the_shipped_models():
    models = read_references()
    table = effective(
        frame_of(
            ("a", "val", "top1", 75.0),
            ("a", "val", "top5", 92.0),
            ("a", "val", "top1_imagenet-a", 91.0),
            ("a", "val", "real_top1", 82.0),
            ("a", "imagenet-v2", "top1", 64.0),
            ("a", "imagenet-a", "top1", 9.0),
            ("a", "imagenet-r", "top1", 40.0),  # its clean counterpart is not there
            ("a", "shapes-a", "top1", 40.0),  # no published accuracies
            ("b", "val", "top1", 12.0),
            ("b", "imagenet-v2", "top1", 6.0),
            ("c", "imagenet-v2", "top1", 6.0),  # without a clean accuracy
            ("d", "imagenet-v2", "top1", math.nan),  # nor has this one
            ("e", "val", "top1", 99.0),
            ("e", "imagenet-v2", "top1", 97.0),
            ("f", "val", "top1", math.nan),
            ("f", "imagenet-v2", "top1", 50.0),
        ),
        models,
    )
    assert table.columns.tolist() == EFFECTIVE
    rows = by_place(table)
    assert set(rows) == {
        ("a", "imagenet-v2"),
        ("a", "imagenet-a"),
        ("a", "imagenet-real"),
        ("b", "imagenet-v2"),
        ("e", "imagenet-v2"),
        ("f", "imagenet-v2"),
    }
    wanted = {
        "imagenet-v2": ("imagenet", 75.0, 64.0),
        "imagenet-a": ("imagenet-a-clean", 91.0, 9.0),
        "imagenet-real": ("imagenet", 75.0, 82.0),
    }
    for benchmark, (column, clean, shifted) in wanted.items():
        known = models[[column, benchmark]].dropna() / 100
        fit = linregress(logit(known[column]), logit(known[benchmark]))
        predicted = on_line(clean, fit.slope, fit.intercept)
        row = rows["a", benchmark]
        assert (row.clean, row.predicted) == pytest.approx((clean, predicted))
        assert row.effective == pytest.approx(shifted - predicted)
    assert not rows["a", "imagenet-v2"].extrapolated
    assert rows["b", "imagenet-v2"].extrapolated
    assert rows["e", "imagenet-v2"].extrapolated
    assert math.isnan(rows["f", "imagenet-v2"].effective)


def test_clean_accuracy_on_imagenet_comes_before_that_on_val():
    rows = [("a", "val", "top1", 40.0), ("a", "imagenet", "top1", 75.0)]
    table = effective(frame_of(*rows, ("a", "imagenet-v2", "top1", 64.0)), read_references())
    assert table["clean"].tolist() == [75.0]


def test_runs_against_the_runs_of_a_baseline():
    clean = [60.0, 70.0, 80.0]
    rows = [(f"base{i}", "val", "top1", value) for i, value in enumerate(clean)]
    shifted = on_line(clean, 1.1, -0.4)
    rows += [(f"base{i}", "shapes-a", "top1", value) for i, value in enumerate(shifted)]
    baseline = frame_of(*rows)
    ours = frame_of(
        ("ours", "val", "top1", 75.0),
        ("ours", "shapes-a", "top1", float(on_line(75.0, 1.1, -0.4)) + 2.5),
        ("ours", "shapes-r", "top1", 30.0),  # the baseline has no value for it
    )
    references = as_references(baseline)
    assert benchmarks_of(references) == ["shapes-a"]
    table = effective(pd.concat([ours, baseline]), references)
    found = {(row.run, row.benchmark): row.effective for row in table.itertuples()}
    wanted = {("ours", "shapes-a"): 2.5} | {(f"base{i}", "shapes-a"): 0.0 for i in range(3)}
    assert found == pytest.approx(wanted, abs=1e-9)
    with pytest.raises(UserError, match=r"on shapes-a: a line needs at least 3 .* found 2"):
        effective(ours, references[:2])


def test_the_number_of_pictures_is_taken_from_the_runs():
    frame = frame_of(
        *[(f"r{i}", "val", "top1", value) for i, value in enumerate([60.0, 80.0, 100.0])],
        *[(f"r{i}", "shapes-a", "top1", value) for i, value in enumerate([40.0, 60.0, 70.0])],
    ).assign(n=[500] * 3 + [50] * 3)
    table = effective(frame, as_references(frame))
    line = fit_line([60.0, 80.0, 99.0], [40.0, 60.0, 70.0])  # 100 % of 50 images is 99 %
    assert table["predicted"].tolist() == pytest.approx(line.predict([60.0, 80.0, 99.0]))
    assert table["clean"].tolist() == [60.0, 80.0, 100.0]


def test_nothing_to_compare_is_an_empty_table():
    for frame in (frame_of(), frame_of(("a", "val", "top1", 50.0))):
        table = effective(frame, read_references())
        assert table.empty
        assert table.columns.tolist() == EFFECTIVE


def test_own_models_of_imagenet_are_appended(tmp_path):
    path = write(
        tmp_path,
        "# measured by ourselves",
        "model,imagenet,imagenet-v2,stylized",
        "mine,70.5,58,",
        '"yours, too",71,,12.25',
    )
    models = read_references(path)
    assert len(models) == len(read_references()) + 2
    mine, yours = models.to_dict("records")[-2:]
    assert (mine["model"], mine["imagenet"], mine["imagenet-v2"]) == ("mine", 70.5, 58.0)
    assert math.isnan(mine["stylized"])
    assert math.isnan(mine["imagenet-a"])
    assert (yours["model"], yours["stylized"]) == ("yours, too", 12.25)
    assert benchmarks_of(models)[-1] == "stylized"


def test_own_models_of_another_data_set_stand_alone(tmp_path):
    clean = [50.0, 60.0, 80.0]
    lines = [f"m{c:.0f},{c},{s:.6f}" for c, s in zip(clean, on_line(clean, 0.8, -0.2), strict=True)]
    models = read_references(write(tmp_path, "model,val,shapes-a", *lines))
    assert len(models) == 3
    rows = [("a", "val", "top1", 70.0), ("a", "shapes-a", "top1", 60.0)]
    table = effective(frame_of(*rows), models)
    assert table["predicted"].tolist() == pytest.approx([on_line(70.0, 0.8, -0.2)], abs=1e-5)


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ([], "is empty"),
        (["name,imagenet,imagenet-v2", "a,1,2"], "mine.csv:1: lacks the column model"),
        (
            ["model,imagenet-v2", "a,1"],
            ":1: expected one column of clean accuracy, imagenet or val",
        ),
        (["model,imagenet,val,x", "a,1,2,3"], ":1: expected one column of clean accuracy"),
        (["model,imagenet", "a,1"], ":1: lacks a column of a benchmark"),
        (["model,imagenet,x,x", "a,1,2,3"], ":1: expected each column named once, found 'x'"),
        (["model,imagenet,imagenet-a", "a,1,2"], ":1: lacks the column imagenet-a-clean"),
        (["#", "model,imagenet,x", "a,1,2", "b,1"], ":4: expected 3 fields, found 2"),
        (["model,imagenet,x", "a,101,2"], ":2: imagenet: expected .* 0 to 100, found '101'"),
        (["model,imagenet,x", "a,1,-2"], ":2: x: expected .* found '-2'"),
        (["model,imagenet,x", "a,1,nan"], ":2: x: expected .* found 'nan'"),
        (["model,imagenet,x", "a,1,good"], ":2: x: expected .* found 'good'"),
        (["model,imagenet,x", "a,1,2", "a,1,2"], ":3: model: expected a unique name, found 'a'"),
        (["model,imagenet,x", "resnet18.tv_in1k,1,2"], ":2: model: expected a unique name"),
        (["model,imagenet,x", ",1,2"], ":2: model: expected a unique name, found ''"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(tmp_path, lines, wrong):
    with pytest.raises(UserError, match=wrong):
        read_references(write(tmp_path, *lines))


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_references(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary.csv: .*codec"):
        read_references(tmp_path / "binary.csv")


def test_the_shipped_file_says_where_its_figures_are_from():
    comments = [line for line in SHIPPED.read_text().splitlines() if line.startswith("#")]
    text = " ".join(comments)
    assert "huggingface/pytorch-image-models" in text
    assert "0173a139a2c66db3a41ebfe1d8ac4fb02483642e" in text


def test_other_numbers_of_classes_are_not_compared_with_published_ones():
    """`among` has only the classes of ImageNet-R."""
    rows = []
    for run, ways, of_r in (("whole", 1000, 200), ("part", 100, 20), ("among", 200, 200)):
        asked = {"val": ways, "imagenet-sketch": ways, "imagenet-r": of_r, "mine": ways}
        for benchmark, count in asked.items():
            rows += [(run, benchmark, "top1", 60.0), (run, benchmark, "ways", count)]
    frame = pd.DataFrame(rows, columns=["run", "benchmark", "metric", "value"])
    kept = comparable(frame)
    for benchmark in ("imagenet-sketch", "imagenet-r"):
        assert set(kept.loc[kept["benchmark"] == benchmark, "run"]) == {"whole"}
    assert set(kept.loc[kept["benchmark"] == "mine", "run"]) == {"whole", "part", "among"}
    assert set(effective(kept, read_references())["run"]) == {"whole"}


@pytest.mark.parametrize(
    ("benchmark", "points"),
    [("imagenet-v2", 0.4), ("imagenet-sketch", 1.9), ("imagenet-r", 2.0), ("imagenet-a", 3.6)],
)
def test_the_spread_of_the_reference_models_around_their_line(benchmark, points):
    models = read_references()
    clean = f"{benchmark}-clean" if benchmark in ("imagenet-a", "imagenet-r") else "imagenet"
    known = models[[clean, benchmark]].dropna()
    fit = linregress(logit(known[clean] / 100), logit(known[benchmark] / 100))
    beyond = known[benchmark] - on_line(known[clean], fit.slope, fit.intercept)
    assert np.sqrt((beyond**2).sum() / (len(beyond) - 2)) == pytest.approx(points, abs=0.05)
    measured = [("a", "val", "top1", 75.0), ("a", "val", f"top1_{benchmark}", 90.0)]
    rows = frame_of(*measured, ("a", benchmark, "top1", 20.0))
    (row,) = effective(rows, models).itertuples()
    assert row.spread == pytest.approx(np.sqrt((beyond**2).sum() / (len(beyond) - 2)), rel=1e-6)
