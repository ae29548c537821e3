"""The matching compared with loops in float64, the true matches with images that encode positions."""

import math
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from densevit.contrast.matching import (
    match,
    match_quality,
    random_match,
    true_match,
    uniform_precision,
)
from densevit.data.crops import cut_views


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(f1, f2):
    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return [
        [max(range(len(two)), key=lambda j, p=patch: cosine(p, two[j])) for patch in one]
        for one, two in zip(f1.tolist(), f2.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("b", "q", "n", "e"), [(1, 1, 1, 1), (3, 16, 16, 8), (2, 7, 30, 5)])
def test_match_equals_loops_in_float64_for_patches_of_any_norm(b, q, n, e):
    scale = 10.0 ** normal(b, n, 1, seed=2)
    f1, f2 = (normal(b, n, e, seed=0) * scale.flip(1))[:, :q], normal(b, n, e, seed=1) * scale
    got = match(f1, f2)
    assert got.shape == (b, q)
    assert got.dtype == torch.int64
    assert got.tolist() == brute_force(f1, f2)


def test_a_long_patch_attracts_no_matches():
    f1 = normal(2, 40, 16, seed=0)
    f2 = f1.clone()
    f2[:, 3] *= 1000
    assert match(f1, f2).tolist() == [list(range(40))] * 2


def test_a_permutation_is_found_and_several_patches_may_share_a_match():
    f1 = normal(1, 20, 16, seed=0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(match(f1[:, order], f1)[0], order)
    assert match(f1[:, :1].expand(1, 20, 16), f1).tolist() == [[0] * 20]


def test_match_has_no_gradient_and_ignores_autocast():
    f1, f2 = normal(2, 60, 8, seed=0).requires_grad_(), normal(2, 60, 8, seed=1)
    wanted = match(f1, f2)
    assert not wanted.requires_grad
    # The second-best matches are so close that bfloat16 products (2⁻⁹) cannot distinguish them.
    f2[:, 1:] = f2[:, :1] + 1e-4 * f2[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = match(f1, f2)
    assert torch.equal(inside, match(f1, f2))


def test_random_match_is_uniform_and_follows_the_generator():
    draw = random_match(500, 10, torch.Generator().manual_seed(0), "cpu")
    assert draw.shape == (500, 10)
    assert draw.dtype == torch.int64
    counts = draw.flatten().bincount(minlength=10)
    assert len(counts) == 10
    # 5,000 draws, 500 expected each; chi-square with 9 degrees of freedom exceeds 27.9 in 0.1 %.
    assert ((counts - 500) ** 2 / 500).sum() < 27.9
    # Independent, so an image repeats indices (ten different ones have probability 0.0004).
    assert sum(len(row.unique()) == 10 for row in draw) < 5
    assert torch.equal(draw, random_match(500, 10, torch.Generator().manual_seed(0), "cpu"))
    assert not torch.equal(draw, random_match(500, 10, torch.Generator().manual_seed(1), "cpu"))
    assert random_match(2, 3, None, "cpu").shape == (2, 3)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"f1 must be \(B, Q, E\), got \(3, 4\)"):
        match(torch.zeros(3, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"f2 must be \(2, N, 4\) for f1 \(2, 3, 4\), got"):
        match(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="patches must be at least 1, got 0"):
        random_match(2, 0, None, "cpu")
    place = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"view1 must be \(B, 4\), got \(4,\)"):
        true_match(place[0], place, (2, 2))
    with pytest.raises(ValueError, match=r"view2 must be \(2, 4\), got \(1, 4\)"):
        true_match(place, place[:1], (2, 2))
    with pytest.raises(ValueError, match=r"grid must have .* got \(0, 3\)"):
        true_match(place, place, (0, 3))


SIZE, HEIGHT, WIDTH = 48, 150, 220
# Pixels of the image. Bicubic resampling preserves a ramp up to float32. At the border of a crop
# its kernel is cut off, so the outermost pixels read up to 0.1 too far inside.
READING = 0.15


class Coordinate(NamedTuple):
    """An image in which each pixel holds the x, or the y, of its own center."""

    values: np.ndarray
    size: tuple[int, int]

    def decode(self, _reduction):
        return Image.fromarray(self.values)


def seen(seed):
    """Return for both views the position (2, SIZE, SIZE) in the image of each pixel, and the
    record."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) + 0.5
    read = []
    for coordinate in (x, y):
        picture = Coordinate(coordinate, (WIDTH, HEIGHT))
        read.append(cut_views(picture, SIZE, random.Random(seed)))
    for across, down in zip(*read, strict=True):
        assert across.place == down.place
        pixels = np.stack([across.pixels, down.pixels])
        yield torch.from_numpy(pixels).double(), torch.tensor(across.place)


def read_match(pixels1, pixels2, grid):
    """Return the patch of view 2 for each patch of view 1, from pixels only, and whether it is
    certain.

    The position at the center of a patch is looked up in view 2: the result is the patch with the
    nearest pixel, or -1 if no pixel of view 2 is near enough. It is certain if no position within
    the reading error gives another result.
    """
    rows, columns = grid
    x2, y2 = pixels2[0].mean(dim=0), pixels2[1].mean(dim=1)  # a crop has straight sides
    partners, certain = [], []
    for row in range(rows):
        for column in range(columns):
            # Patches have even sides, so a center lies between four pixels.
            down, across = (
                (2 * row + 1) * SIZE // rows // 2,
                (2 * column + 1) * SIZE // columns // 2,
            )
            x, y = pixels1[:, down - 1 : down + 1, across - 1 : across + 1].mean(dim=(1, 2))
            answers = [
                nearest_patch(x2, x + dx, columns, y2, y + dy, rows)
                for dx in (0, -READING, READING)
                for dy in (0, -READING, READING)
            ]
            partners.append(answers[0])
            certain.append(len(set(answers)) == 1)
    return partners, certain


def nearest_patch(x2, x, columns, y2, y, rows):
    pixels = []
    for readings, place in ((y2, y), (x2, x)):
        gap, pixel = (readings - place).abs().min(dim=0)
        reach = (readings[-5] - readings[4]).abs() / (SIZE - 9) / 2  # half a pixel, borders apart
        if gap > reach:
            return -1
        pixels.append(int(pixel))
    return pixels[0] * rows // SIZE * columns + pixels[1] * columns // SIZE


@pytest.mark.parametrize("grid", [(6, 6), (4, 12), (8, 3), (1, 2)])
def test_true_match_is_what_the_pixels_of_both_views_show(grid):
    kinds, doubtful, total = set(), 0, 0
    for seed in range(60):
        (pixels1, place1), (pixels2, place2) = seen(seed)
        got = true_match(place1[None], place2[None], grid)[0].tolist()
        wanted, certain = read_match(pixels1, pixels2, grid)
        wrong = [i for i, sure in enumerate(certain) if sure and got[i] != wanted[i]]
        assert wrong == [], (seed, place1, place2)
        doubtful += len(certain) - sum(certain)
        total += len(certain)
        kinds.add(tuple(bool(pixels[0, 0, 0] > pixels[0, 0, -1]) for pixels in (pixels1, pixels2)))
        kinds.add("partly" if -1 in got and max(got) >= 0 else "not" if max(got) < 0 else "fully")
    # Every flip of either view, and views that overlap fully, partly and not at all.
    assert kinds >= {(a, b) for a in (False, True) for b in (False, True)} | {"fully", "partly"}
    # 0.15 pixels in either direction, on patches that are mostly wider than 10.
    assert doubtful / total < 0.06


# Crops with integer sides, flipped or not, as `View` records them.
SIDES = st.tuples(st.integers(0, 300), st.integers(1, 300))
PLACES = st.tuples(SIDES, SIDES, st.booleans()).map(
    lambda p: (
        (p[0][0] + p[0][1], p[1][0], p[0][0], p[1][0] + p[1][1])
        if p[2]
        else (p[0][0], p[1][0], p[0][0] + p[0][1], p[1][0] + p[1][1])
    )
)
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))


def looped_match(view1, view2, grid):
    """Return the patch or -1, and the distance of a center from a border in patches, in float64."""
    answers = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            x = view1[0] + (column + 0.5) / grid[1] * (view1[2] - view1[0])
            y = view1[1] + (row + 0.5) / grid[0] * (view1[3] - view1[1])
            across = (x - view2[0]) / (view2[2] - view2[0]) * grid[1]
            down = (y - view2[1]) / (view2[3] - view2[1]) * grid[0]
            inside = 0 <= across < grid[1] and 0 <= down < grid[0]
            near = min(abs(across - round(across)), abs(down - round(down)))
            answers.append((int(down) * grid[1] + int(across) if inside else -1, near))
    return answers


def matched(view1, view2, grid):
    return true_match(torch.tensor([view1]).float(), torch.tensor([view2]).float(), grid)[
        0
    ].tolist()


@settings(max_examples=300)
@given(view1=PLACES, view2=PLACES, grid=GRIDS)
def test_true_match_equals_a_loop_in_float64(view1, view2, grid):
    got = matched(view1, view2, grid)
    assert len(got) == grid[0] * grid[1]
    for patch, (wanted, near) in zip(got, looped_match(view1, view2, grid), strict=True):
        # On a border float32 may round to either side; (300 + 300) · 2⁻²⁴ / 1 · 9 patches is 3e-4.
        assert patch == wanted or near < 1e-3


@pytest.mark.parametrize(
    ("view2", "wanted"),
    [
        ((1, 1, 3, 3), [0, -1, -1, -1]),
        ((3, 1, 1, 3), [-1, 0, -1, -1]),  # flipped: its left side is at 3
    ],
)
def test_a_centre_on_the_rim_is_shown_at_the_left_and_top_and_not_at_the_right_and_bottom(
    view2, wanted
):
    # The centers are at 1 and 3, which float32 represents exactly.
    assert matched((0, 0, 4, 4), view2, (2, 2)) == wanted


@settings(max_examples=300)
@given(view1=PLACES, view2=PLACES, grid=GRIDS)
def test_swapped_views_lead_back_to_the_patch_or_one_beside_it(view1, view2, grid):
    """If view 2 is not larger: the center of a match lies within half a patch of view 1's center."""
    assume(abs(view2[2] - view2[0]) <= abs(view1[2] - view1[0]))
    assume(view2[3] - view2[1] <= view1[3] - view1[1])
    there, back = matched(view1, view2, grid), matched(view2, view1, grid)
    for patch, partner in enumerate(there):
        if partner >= 0 and back[partner] >= 0:
            one, two = divmod(patch, grid[1]), divmod(back[partner], grid[1])
            assert max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1


@settings(max_examples=100)
@given(view=PLACES, grid=GRIDS)
def test_identical_views_match_each_patch_to_itself_and_a_flip_mirrors_the_rows(view, grid):
    patches = torch.arange(grid[0] * grid[1]).reshape(grid)
    mirrored = (view[2], view[1], view[0], view[3])
    assert matched(view, view, grid) == patches.flatten().tolist()
    assert matched(view, mirrored, grid) == patches.flip(1).flatten().tolist()


def test_views_that_share_no_place_match_nothing_and_each_image_is_on_its_own():
    left, all_of_it = (0, 0, 50, 80), (0, 0, 100, 80)
    right = (100, 0, 50, 80)  # flipped
    below = (0, 80, 50, 160)  # touches the one above it along a side
    view1 = torch.tensor([left, right, left, all_of_it, left]).float()
    view2 = torch.tensor([right, left, below, left, left]).float()
    got = true_match(view1, view2, (2, 4))
    assert got.dtype == torch.int64
    assert got[:3].tolist() == [[-1] * 8] * 3
    # Centers at x = 12.5 and 37.5 of the whole are in patches 1 and 3 (of 12.5 pixels) of the half.
    assert got[3].tolist() == [1, 3, -1, -1, 5, 7, -1, -1]
    assert got[4].tolist() == list(range(8))


def quality(partner, truth, grid):
    numbers = match_quality(torch.tensor(partner), torch.tensor(truth), grid)
    return [number.item() for number in numbers]


def test_precision_counts_the_true_patch_and_the_eight_around_it():
    grid, truth = (4, 5), [[12] * 20]  # row 2, column 2
    precise, overlap, unique = quality([list(range(20))], truth, grid)
    assert (precise, overlap, unique) == (pytest.approx(9 / 20), 1, 1)
    right = [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert [i for i in range(20) if quality([[i]], [[12]], grid)[0] == 1] == right


def test_the_last_patch_of_a_row_is_no_neighbour_of_the_first_of_the_next():
    assert quality([[4, 5, 9, 10]], [[5, 4, 10, 9]], (4, 5))[0] == 0
    assert quality([[4, 3]], [[9, 9]], (4, 5))[0] == 1  # above it, and above it to the left


def test_patches_without_a_true_match_count_for_overlap_only():
    # Two of four patches have a true match, and one of these is found.
    assert quality([[0, 19, 7, 7]], [[1, 0, -1, -1]], (4, 5)) == [0.5, 0.5, 0.75]
    precise, overlap, unique = quality([[0, 1]], [[-1, -1]], (4, 5))
    assert math.isnan(precise)
    assert (overlap, unique) == (0, 1)


def test_a_patch_without_a_match_is_neither_right_nor_used():
    # -1 is adjacent to patch 0 only as a number; two of three matched patches are different.
    assert quality([[-1, 3, 3, 9]], [[0, 3, 8, 0]], (4, 5)) == [0.5, 1, pytest.approx(2 / 3)]
    assert math.isnan(quality([[-1, -1]], [[0, 1]], (4, 5))[2])


def test_unique_counts_each_picture_on_its_own_and_shares_are_of_all_pictures():
    # 1 of 3 and 3 of 3; the same patch in two images counts as two matches.
    partner, truth = [[2, 2, 2], [2, 0, 1]], [[2, -1, 2], [-1, -1, -1]]
    assert quality(partner, truth, (2, 2)) == [1, pytest.approx(2 / 6), pytest.approx(4 / 6)]


@pytest.mark.parametrize("grid", [(7, 7), (5, 9), (1, 3)])
def test_the_precision_of_matches_that_look_at_no_feature_follows_from_the_crops(grid):
    draws, (rows, columns) = random.Random(0), grid
    views = []
    for _ in range(40):  # two crops of an image of 100 x 100, some of them flipped
        left, top = draws.uniform(0, 50), draws.uniform(0, 50)
        box = [left, top, left + draws.uniform(30, 50), top + draws.uniform(30, 50)]
        views.append(box if draws.random() < 0.5 else [box[2], box[1], box[0], box[3]])
    first, second = (torch.tensor(part) for part in (views[::2], views[1::2]))
    same, uniform = [], []
    for one, other in zip(views[::2], views[1::2], strict=True):
        for index, (true, _) in enumerate(looped_match(one, other, grid)):
            if true < 0:
                continue
            right = [
                abs(i // columns - true // columns) <= 1 and abs(i % columns - true % columns) <= 1
                for i in range(rows * columns)
            ]
            same.append(right[index])
            uniform.append(sum(right) / len(right))
    found = true_match(first, second, grid)
    places = torch.arange(rows * columns).expand_as(found)
    got = match_quality(places, found, grid).precision
    assert float(got) == pytest.approx(np.mean(same), abs=1e-6)
    assert float(uniform_precision(found, grid)) == pytest.approx(np.mean(uniform), rel=1e-5)
