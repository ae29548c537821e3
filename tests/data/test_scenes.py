"""The built-in set `shapes-many`: its masks, labels and layout, and that only shape tells a class."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from densevit.contrast.matching import true_match
from densevit.data.crops import RECIPES, draw_view
from densevit.data.shapes import dataset
from densevit.data.shapes.dataset import CLASSES, MANY_SHIFTED, SETS, draw, load
from densevit.data.shapes.outlines import outline
from densevit.data.shapes.recipes import MANY
from densevit.data.shapes.scenes import place_scene

MANY_SET = SETS["shapes-many"]
SPLITS = tuple(MANY_SET.counts)


def scene(split, index, size=64, seed=0):
    return draw(split, index, size, seed, name="shapes-many")


@pytest.fixture(scope="module")
def train():
    return [scene("train", index) for index in range(300)]


@pytest.fixture(scope="module")
def layouts():
    """Return the objects of many scenes, without drawing them."""
    return [place_scene("train", index) for index in range(1500)]


def test_names_and_counts():
    assert list(SETS) == ["shapes", "shapes-many"]
    assert [one.name for one in SETS.values()] == list(SETS)
    assert list(MANY_SET.counts.items()) == [
        ("train", 6000),
        ("val", 1000),
        *((name, 600) for name in MANY_SHIFTED),
    ]
    assert (
        tuple(f"shapes-many-{shift}" for shift in ("a", "r", "v2", "stylized", "sketch"))
        == MANY_SHIFTED
    )
    assert list(MANY) == list(SPLITS)
    assert (MANY_SET.version, MANY_SET.smallest, MANY_SET.multilabel) == (1, 64, True)
    shapes = SETS["shapes"]
    assert (shapes.version, shapes.smallest, shapes.multilabel) == (1, 32, False)
    assert shapes.counts is dataset.COUNTS


# --- masks and labels ----------------------------------------------------------------------------


def inside(loops, size):
    """Return the pixels, (S, S), whose center is inside the loops by the even-odd rule."""
    at = (np.arange(size) + 0.5) / size
    x, y = at[None, :], at[:, None]
    crossings = np.zeros((size, size), dtype=int)
    for loop in loops:
        for (x1, y1), (x2, y2) in zip(loop, np.roll(loop, -1, axis=0), strict=True):
            if y1 != y2:
                between = (y >= min(y1, y2)) & (y < max(y1, y2))
                crossings += between & (x1 + (y - y1) / (y2 - y1) * (x2 - x1) > x)
    return crossings % 2 == 1


def neighbors(mask):
    """Return each pixel with its eight neighbors, (9, S, S); the border is repeated."""
    size = len(mask)
    wide = np.pad(mask, 1, mode="edge")
    return np.stack([wide[i : i + size, j : j + size] for i in range(3) for j in range(3)])


# The lines of a cartoon and the dots of a pixelled drawing belong to the object, occluders do not.
@pytest.mark.parametrize("split", ["train", "shapes-many-v2", *MANY_SHIFTED[3:]])
@pytest.mark.parametrize("size", [64, 100])
def test_masks_are_those_of_the_recorded_places(split, size):
    for index in range(8):
        wanted = np.zeros((size, size), dtype=np.uint8)
        for placed in place_scene(split, index):  # from back to front
            (a, b), (c, d) = placed.matrix
            loops = [
                np.stack([a * x + c * y, b * x + d * y], axis=1) + placed.shift
                for x, y in (loop.T for loop in outline(placed.name))
            ]
            wanted[inside(loops, size)] = CLASSES.index(placed.name) + 1
        near = neighbors(wanted)
        clear = (near == near[0]).all(axis=0)  # away from the boundaries
        assert clear.mean() > 0.6
        assert np.array_equal(scene(split, index, size).mask[clear], wanted[clear])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [64, 90])
def test_a_label_lists_the_visible_classes(split, size):
    for index in range(15):
        drawn = scene(split, index, size)
        assert drawn.image.shape == (size, size, 3)
        assert drawn.mask.shape == (size, size)
        assert drawn.image.dtype == drawn.mask.dtype == drawn.label.dtype == np.uint8
        classes = np.unique(drawn.mask[drawn.mask > 0]) - 1
        assert np.array_equal(np.flatnonzero(drawn.label), classes)
        assert set(drawn.label) <= {0, 1}
        assert 3 <= len(classes) <= 5
        placed = place_scene(split, index)
        assert {CLASSES.index(one.name) for one in placed} == set(classes)
        for one in placed:  # No class counts of which little can be seen.
            visible = (drawn.mask == CLASSES.index(one.name) + 1).sum()
            assert visible >= one.area * size**2 / 3
        assert drawn.image.std() > 4


# --- layout --------------------------------------------------------------------------------------


def test_classes_and_counts_are_equally_frequent(layouts):
    counts = np.bincount([len(objects) for objects in layouts], minlength=6)[3:]
    assert np.abs(counts / len(layouts) - 1 / 3).max() < 0.04
    shown = np.zeros((len(layouts), 10))
    for row, objects in zip(shown, layouts, strict=True):
        row[[CLASSES.index(one.name) for one in objects]] = 1
    assert np.array_equal(shown.sum(axis=1), [len(objects) for objects in layouts])
    assert np.abs(shown.mean(axis=0) - 0.4).max() < 0.04  # four of ten on average
    # The number of objects does not depend on the class.
    means = [shown[row > 0].sum(axis=1).mean() for row in shown.T]
    assert np.ptp(means) < 0.2
    # All pairs of classes are equally frequent: n (n - 1) of 90, for n objects.
    pairs = (shown.T @ shown / len(shown))[np.triu_indices(10, 1)]
    assert np.abs(pairs - (6 + 12 + 20) / 3 / 90).max() < 0.035


def test_areas_order_and_places_do_not_tell_the_class(layouts):
    of = {name: [] for name in CLASSES}
    for objects in layouts:
        for depth, one in enumerate(objects):
            of[one.name].append((one.area, depth / (len(objects) - 1), *one.shift))
    means = np.array([np.mean(rows, axis=0) for rows in of.values()])
    assert np.abs(means[:, 0] / means[:, 0].mean() - 1).max() < 0.03
    assert np.abs(means[:, 1] - 0.5).max() < 0.06
    assert np.abs(means[:, 2:] - 0.5).max() < 0.04
    everywhere = np.concatenate(list(of.values()))[:, 2:]
    assert (
        np.histogram2d(*everywhere.T, bins=4, range=[(0.1, 0.9)] * 2)[0] > 0.03 * len(everywhere)
    ).all()


def test_objects_hide_parts_of_each_other(train):
    shares = [
        (drawn.mask == CLASSES.index(one.name) + 1).sum() / (one.area * 64**2)
        for index, drawn in enumerate(train)
        for one in place_scene("train", index)
    ]
    assert 0.2 < np.mean(np.array(shares) < 0.8) < 0.5
    assert min(shares) > 0.45


def shown_in(mask, place):
    """Return the classes of which a crop shows at least half of the visible pixels."""
    left, top, right, bottom = map(int, place)
    left, right = sorted((left, right))
    whole = np.bincount(mask.ravel(), minlength=11)[1:]
    part = np.bincount(mask[top:bottom, left:right].ravel(), minlength=11)[1:]
    return frozenset(np.flatnonzero((whole > 0) & (2 * part >= whole)))


def share_of_same_objects(masks):
    draws = random.Random(0)
    pairs = [
        [shown_in(mask, draw_view(recipe, mask.shape, draws)[0]) for recipe in RECIPES]
        for mask in masks
        for _ in range(6)
    ]
    return np.mean([bool(first) and first == second for first, second in pairs])


def test_two_crops_rarely_show_the_same_objects(train):
    assert share_of_same_objects([drawn.mask for drawn in train]) <= 0.25
    one = share_of_same_objects([draw("train", index, 64).mask for index in range(200)])
    assert one > 0.6  # the contrast: a set of one object


def test_patches_that_match_show_the_same_class(train):
    draws = random.Random(0)
    grid, pixels = 8, 9  # an odd number of pixels, so that a patch has one in its center
    agree, other = [], []
    for drawn in train[:150]:
        places = [draw_view(recipe, (64, 64), draws)[0] for recipe in RECIPES]
        found = true_match(*(torch.tensor([place]) for place in places), (grid, grid))[0].numpy()
        # The affine maps from a view, in fractions of its sides, to the image.
        maps = [
            np.array([[right - left, 0, left], [0, bottom - top, top], [0, 0, 1]])
            for left, top, right, bottom in places
        ]
        centers = (np.mgrid[:grid, :grid].reshape(2, -1)[::-1] + 0.5) / grid
        across, down, _ = np.linalg.solve(maps[1], maps[0] @ [*centers, np.ones(grid**2)]) * grid
        # A center on the boundary of two patches may be rounded to either.
        sure = (np.abs(across - np.round(across)) > 1e-3) & (np.abs(down - np.round(down)) > 1e-3)
        wanted = np.floor(down) * grid + np.floor(across)
        wanted[(np.minimum(across, down) < 0) | (np.maximum(across, down) >= grid)] = -1
        assert np.array_equal(found[sure], wanted[sure])
        # The same by the masks of both views.
        views = [cut(drawn.mask, place, grid * pixels) for place in places]
        center = views[0][pixels // 2 :: pixels, pixels // 2 :: pixels].ravel()
        near = neighbors(views[1])  # nearest pixels may be one off
        for patch in np.flatnonzero((found >= 0) & (center > 0)):
            for result, match in ((agree, found[patch]), (other, (found[patch] + 27) % 64)):
                row, column = match // grid * pixels, match % grid * pixels
                shown = near[:, row : row + pixels, column : column + pixels]
                result.append(bool((shown == center[patch]).any()))
    assert len(agree) > 1000
    assert np.mean(agree) > 0.99
    assert np.mean(other) < 0.5  # matches to another place do not pass


def cut(mask, place, size):
    left, top, right, bottom = place
    box = (min(left, right), top, max(left, right), bottom)
    view = np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST, box))
    return view[:, ::-1] if right < left else view


# --- only shape tells the class ------------------------------------------------------------------


def colors(pixels):
    return np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)])


def test_the_ground_does_not_tell_the_classes(train):
    from sklearn.linear_model import Ridge
    from sklearn.metrics import roc_auc_score

    x = np.stack([colors(drawn.image[drawn.mask == 0]) for drawn in train])
    y = np.stack([drawn.label for drawn in train])
    half = len(x) // 2
    scores = Ridge(1.0).fit(x[:half], y[:half]).predict(x[half:])
    areas = [roc_auc_score(y[half:, label], scores[:, label]) for label in range(10)]
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert max(areas) < 0.65


def objects(drawings):
    """Return color features, outlines as (n, 256) and classes of all visible objects."""
    features, outlines, labels = [], [], []
    for drawn in drawings:
        for label in np.flatnonzero(drawn.label):
            mask = drawn.mask == label + 1
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            features.append(colors(drawn.image[mask]))
            outlines.append(np.asarray(Image.fromarray(box).resize((16, 16))).ravel())
            labels.append(label)
    return np.stack(features), np.stack(outlines), np.array(labels)


def test_shape_tells_the_class_and_color_does_not(train):
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    x, outlines, y = objects(train)
    half = len(y) // 2
    color = LogisticRegression(max_iter=1000).fit(x[:half] / 64, y[:half])
    assert color.score(x[half:] / 64, y[half:]) < 0.15
    shape = KNeighborsClassifier(5).fit(outlines[:half], y[:half])
    assert shape.score(outlines[half:], y[half:]) > 0.6


# --- reproducible --------------------------------------------------------------------------------


def digest(drawn):
    parts = (drawn.image, drawn.mask, drawn.label)
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_the_same_key_gives_the_same_bytes_in_any_order_and_process():
    keys = [(split, index) for split in SPLITS for index in (0, 1, 17)]
    here = {key: digest(scene(*key, 70, seed=3)) for key in keys}
    assert {key: digest(scene(*key, 70, seed=3)) for key in reversed(keys)} == here
    assert len(set(here.values())) == len(keys)
    assert digest(scene("train", 0, 70)) != here["train", 0]  # another seed
    code = (
        "import hashlib, sys; from densevit.data.shapes.dataset import draw\n"
        "for split in sys.argv[1:]:\n"
        "  for index in (17, 1, 0):\n"
        "    d = draw(split, index, 70, seed=3, name='shapes-many')\n"
        "    parts = d.image.tobytes() + d.mask.tobytes() + d.label.tobytes()\n"
        "    print(split, index, hashlib.sha256(parts).hexdigest())\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, *reversed(SPLITS)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    there = {(s, int(i)): h for s, i, h in map(str.split, out.splitlines())}
    assert there == here


@pytest.mark.parametrize("split", SPLITS[1:])
def test_a_scene_is_the_same_at_every_size(split):
    for index in range(6):
        small, large = scene(split, index, 64), scene(split, index, 128)
        shrunk = large.image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(shrunk - small.image).mean() < 12
        assert np.mean(large.mask[::2, ::2] == small.mask) > 0.95
        assert np.array_equal(large.label, small.label)


def test_a_loaded_split_is_what_draw_gives_and_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setitem(MANY_SET.counts, "val", 12)
    split = load("val", 66, tmp_path, seed=2, name="shapes-many")
    assert split.images.shape == (12, 66, 66, 3)
    assert split.masks.shape == (12, 66, 66)
    assert split.labels.shape == (12, 10)
    assert split.labels.dtype == np.uint8
    for index in (0, 11):
        drawn = scene("val", index, 66, seed=2)
        assert np.array_equal(split.images[index], drawn.image)
        assert np.array_equal(split.masks[index], drawn.mask)
        assert np.array_equal(split.labels[index], drawn.label)
    for array in (split.images, split.masks, split.labels):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    monkeypatch.setattr(dataset, "draw", None)  # what is stored is not drawn again
    again = load("val", 66, tmp_path, seed=2, name="shapes-many")
    assert np.array_equal(again.images, split.images)
    monkeypatch.setitem(dataset.COUNTS, "val", 12)
    with pytest.raises(ValueError, match=r"labels.npy does not hold \(12,\) of int64"):
        load("val", 66, tmp_path, seed=2)  # one folder holds one set


@pytest.mark.parametrize(
    ("args", "name", "says"),
    [
        (("train", 0, 63), "shapes-many", "shapes-many: .* 63.* 64 or more"),
        (("shapes-a", 0, 64), "shapes-many", "'shapes-a'.*shapes-many-sketch"),
        (("val", -1, 64), "shapes-many", "index is -1"),
        (("val", 0, 64, -2), "shapes-many", "seed is -2"),
        (("val", 0, 64), "shapes-few", "'shapes-few'; the sets are shapes, shapes-many"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args, name, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        draw(*args, name=name)
    assert "\n" not in str(caught.value)
    if "index" not in says:
        with pytest.raises(ValueError, match=says):
            load(args[0], args[2], tmp_path, *args[3:], name=name)
        assert list(tmp_path.iterdir()) == []


# --- shifts --------------------------------------------------------------------------------------


def test_the_hard_set_has_smaller_objects_that_are_hidden_more(train):
    hard = [scene("shapes-many-a", index) for index in range(60)]
    foreground = [np.mean([(one.mask > 0).mean() for one in group]) for group in (hard, train)]
    assert foreground[0] < 0.8 * foreground[1]
    lightness = []
    for group in (hard, train[:60]):
        gaps = [one.image[one.mask > 0].mean() - one.image[one.mask == 0].mean() for one in group]
        lightness.append(np.mean(np.abs(gaps)))
    assert lightness[0] < 0.85 * lightness[1]


def test_sketches_are_dark_lines_on_light_paper():
    for index in range(10):
        light = scene("shapes-many-sketch", index, 96).image.mean(axis=2)
        assert np.median(light) > 210
        assert 0.02 < (light < 110).mean() < 0.3
