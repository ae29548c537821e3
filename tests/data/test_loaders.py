"""Views and batches: random draws depend on seed, epoch and image, and on nothing else."""

import math
import random
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest, uniform

from densevit.config.evaluation_names import benchmark_names
from densevit.config.run_config import RunConfig
from densevit.data.batch import Batch
from densevit.data.crops import RECIPES, Recipe, cut_views, draw_view, plain_view
from densevit.data.datasets import open_data
from densevit.data.image import LazyImage, read_image
from densevit.data.image_folder import scan
from densevit.data.loaders import (
    BatchOrder,
    on_device,
    plain_batches,
    probe_crops,
    training_batches,
)
from densevit.data.random_streams import derived_seed
from densevit.data.shapes import dataset
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from torchvision.transforms import RandomResizedCrop  # noqa: E402

MEAN = STD = (0.5, 0.5, 0.5)


def epoch_of(blobs, epoch, *, workers=0, start=0, **settings):
    images = scan(blobs / "train", "x")
    order = BatchOrder(len(images), **{"batch_size": 8, "seed": 0, **settings})
    order.epoch, order.start = epoch, start
    batches = training_batches(images, 32, order, workers=workers, pin=False)
    return [crops.developed(MEAN, STD) for crops in on_device(batches, torch.device("cpu"))]


def joined(batches):
    """Return all images of an epoch as one batch."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def probe_of(images, count):
    return probe_crops(images, 32, count).developed(MEAN, STD)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_is_the_same_with_any_number_of_workers_and_batch_size(blobs):
    torch.manual_seed(1)
    plain = joined(epoch_of(blobs, 3))
    torch.manual_seed(2)  # draws of the run itself make no difference
    assert equal(plain, joined(epoch_of(blobs, 3, workers=2)))
    by_four = joined(epoch_of(blobs, 3, batch_size=4))
    assert equal(plain, [part[: len(plain.ids)] for part in by_four])


def test_epochs_seeds_and_views_differ(blobs):
    first = joined(epoch_of(blobs, 0)[:1])
    for other in (epoch_of(blobs, 1), epoch_of(blobs, 0, seed=1)):
        other = joined(other)
        assert not torch.equal(first.ids, other.ids[:8])
        # For the same image too: another view from another place.
        same = [other.ids.tolist().index(i) for i in first.ids.tolist() if i in other.ids]
        picture = other.ids[same[0]]
        row = first.ids.tolist().index(picture)
        assert not torch.equal(first.view1[row], other.view1[same[0]])
        assert not torch.equal(first.place1[row], other.place1[same[0]])
    assert not torch.equal(first.view1, first.view2)
    assert not torch.equal(first.place1, first.place2)


def test_a_batch_names_what_it_holds_and_comes_apart_again(blobs):
    batch = epoch_of(blobs, 0)[0]
    assert isinstance(batch, Batch)
    assert batch.view1.shape == batch.view2.shape == (8, 3, 32, 32)
    assert batch.place1.shape == batch.place2.shape == (8, 4)
    assert batch.place1.dtype == batch.view1.dtype == torch.float32
    labels = scan(blobs / "train", "x").labels
    assert batch.labels.tolist() == [labels[i] for i in batch.ids.tolist()]
    parts = batch.split(3)
    assert [len(part.ids) for part in parts] == [3, 3, 2]
    assert all(isinstance(part, Batch) for part in parts)
    assert equal(joined(parts), batch)
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert {part.device.type for part in moved} == {"meta"}
    assert equal(batch.to(torch.device("cpu")), batch)


def test_an_epoch_can_be_entered_at_any_batch(blobs):
    whole = epoch_of(blobs, 2, workers=2)
    for start in range(6):
        rest = epoch_of(blobs, 2, start=start, workers=start % 2)
        assert len(rest) == 5 - start
        assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_parts_of_the_ranks_in_order_are_the_batch_of_one_process(blobs, ranks):
    whole = epoch_of(blobs, 1)
    parts = [epoch_of(blobs, 1, rank=rank, ranks=ranks) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        assert equal(batch, joined([part[number] for part in parts]))


def test_the_probe_holds_the_same_views_of_pictures_from_every_class(blobs):
    images = scan(blobs / "train", "x")
    torch.manual_seed(1)
    probe = probe_of(images, 9)
    random_state = torch.get_rng_state()
    assert equal(probe, probe_of(images, 9))
    assert torch.equal(torch.get_rng_state(), random_state)
    # No image and no empty slot of a queue has the id of one of these.
    assert probe.ids.tolist() == [-2] * 9
    # 16, 12 and 14 images, sorted by class: 9 at equal steps are about 3 of each.
    assert sorted(images.labels) == list(images.labels)
    assert probe.labels.bincount().tolist() in ([3, 3, 3], [4, 2, 3], [4, 3, 2])
    assert len({tuple(view.flatten().tolist()) for view in probe.view1}) == 9
    assert not torch.equal(probe.view1, probe.view2)


def test_the_probe_holds_at_most_every_picture_once(blobs):
    images = scan(blobs / "val", "x")
    probe = probe_of(images, 1000)
    assert len(probe.ids) == len(images) == 15
    assert probe.labels.tolist() == list(images.labels)


def test_loading_leaves_the_runs_own_random_numbers_alone(blobs):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    epoch_of(blobs, 0)
    assert torch.equal(torch.rand(3), wanted)


def test_an_epoch_holds_each_picture_at_most_once_and_drops_the_rest(blobs):
    batches = epoch_of(blobs, 0)
    indices = joined(batches).ids.tolist()
    assert len(batches) == 42 // 8
    assert len(set(indices)) == len(indices) == 40


def test_plain_batches_hold_every_picture_once(blobs):
    view = plain_view(32, MEAN, STD, 1.0, "center", "bicubic")
    images = scan(blobs / "train", "x")
    batches = plain_batches(images, view, batch_size=9, workers=0, pin=False)
    labels, indices = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
    assert indices.tolist() == list(range(42))
    assert labels.tolist() == list(images.labels)


class Coordinate(NamedTuple):
    """An image in which each pixel holds the x, or the y, of its own center."""

    values: np.ndarray
    size: tuple[int, int]

    def decode(self, _reduction):
        return Image.fromarray(self.values)


def coordinates(height, width):
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return Coordinate(x, (width, height)), Coordinate(y, (width, height))


def places_and_pixels(number, pictures, draws, size=32):
    """Return for each draw the place that a view records, and the x and y that its pixels hold."""
    for draw in range(draws):
        crops = []
        for picture in pictures:
            crops.append(cut_views(picture, size, random.Random(draw))[number])
        pixels = (torch.from_numpy(crop.pixels.copy()).double() for crop in crops)
        yield torch.tensor(crops[0].place), *pixels


@pytest.mark.parametrize("number", [0, 1])
def test_the_recorded_place_is_what_the_pixels_show(number):
    flips = 0
    for place, x, y in places_and_pixels(number, coordinates(90, 130), 200):
        left, top, right, bottom = place.tolist()
        shares = (torch.arange(32) + 0.5) / 32  # of the view, at the centers of its pixels
        # Resampling preserves a ramp to a few hundredths of a pixel (its kernel is sampled), except
        # at the border of the image, where the kernel is cut off.
        inner = slice(3, -3)
        across, down = left + shares * (right - left), top + shares * (bottom - top)
        torch.testing.assert_close(x[:, inner].mean(0), across[inner].double(), rtol=0, atol=0.05)
        torch.testing.assert_close(y[inner].mean(1), down[inner].double(), rtol=0, atol=0.05)
        assert 0 <= min(left, right) < max(left, right) <= 130
        assert 0 <= top < bottom <= 90
        assert (right < left) == bool(x[0, 0] > x[0, -1])
        flips += right < left
    assert 70 < flips < 130  # a half of 200: four standard deviations


@pytest.mark.parametrize(("number", "least"), [(0, 0.08), (1, 0.2)])
def test_crops_have_the_area_that_the_design_says(number, least):
    shares = []
    for place, *_ in places_and_pixels(number, coordinates(96, 96), 300):
        left, top, right, bottom = place.tolist()
        shares.append(abs(right - left) * (bottom - top) / 96**2)
    # Sides are rounded to whole pixels, of at least 23 each: the area changes by 2 %.
    assert all(share > 0.95 * least for share in shares)
    assert min(shares) < 1.4 * least
    assert max(shares) > 0.9


def test_the_colors_are_drawn_as_the_design_says():
    draws = random.Random(0)
    drawn = [
        torch.tensor([draw_view(recipe, (64, 48), draws)[1] for _ in range(2000)])
        for recipe in RECIPES
    ]
    for color in drawn:
        assert color[:, :3].min() >= 0.6
        assert color[:, :3].max() <= 1.4
        assert color[:, 3].abs().max() <= 0.1
        # Uniform: mean ± four standard errors, deviation of a uniform distribution.
        for column, centre, width in ((0, 1, 0.8), (1, 1, 0.8), (2, 1, 0.8), (3, 0, 0.2)):
            values = color[:, column]
            deviation = width / 12**0.5
            assert abs(values.mean() - centre) < 4 * deviation / 2000**0.5
            assert values.std() == pytest.approx(deviation, rel=0.05)
        orders = color[:, 4:8].unique(dim=0)
        assert len(orders) == 24  # every order of the four
        assert (orders.sort(dim=1).values == torch.arange(4)).all()
    assert (drawn[0][:, 8] == 0).all()
    sigmas = drawn[1][:, 8][drawn[1][:, 8] > 0]
    assert 328 < len(sigmas) < 472  # a fifth of 2,000: four standard deviations
    assert 0.1 <= sigmas.min() < sigmas.max() <= 2
    assert abs(sigmas.mean() - 1.05) < 4 * (1.9 / 12**0.5) / 328**0.5


@pytest.mark.parametrize("size", [(500, 375), (64, 64), (40, 300), (900, 30), (3, 2)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_crops_are_distributed_like_torchvisions(recipe, size):
    draws, count = random.Random(1), 1500
    ours = np.array([draw_view(recipe, size, draws)[0] for _ in range(count)])
    ours = np.stack([ours[:, [0, 2]].min(1), ours[:, 1], ours[:, [0, 2]].max(1), ours[:, 3]], 1)
    torch.manual_seed(1)
    picture = torch.empty(3, size[1], size[0])
    theirs = []
    for _ in range(count):
        top, left, height, width = RandomResizedCrop.get_params(
            picture, list(recipe.scale), [3 / 4, 4 / 3]
        )
        theirs.append([left, top, left + width, top + height])
    for mine, other in zip(ours.T, np.array(theirs).T, strict=True):
        # Two samples of one distribution differ by more in one of 10,000 tests.
        assert ks_2samp(mine, other).pvalue > 1e-4


def test_the_logarithm_of_a_crops_ratio_is_uniform():
    """A crop is as often 4:3 as 3:4. A uniform ratio would give more wide crops than tall ones."""
    draws, quarter = random.Random(0), Recipe((0.25, 0.25), 0.0)  # fits at every ratio
    places = np.array([draw_view(quarter, (4000, 4000), draws)[0] for _ in range(4000)])
    logs = np.log(abs(places[:, 2] - places[:, 0]) / (places[:, 3] - places[:, 1]))
    wanted = uniform(-math.log(4 / 3), 2 * math.log(4 / 3))
    assert kstest(logs, wanted.cdf).pvalue > 1e-4


def test_an_image_is_decoded_as_small_as_no_side_of_a_crop_is_enlarged():
    """Pillow's JPEG decoder halves the size up to three times."""
    found = []

    def decode(reduction):
        found.append(reduction)
        return Image.new("L", (64, 48))

    image = SimpleNamespace(size=(640, 480), decode=decode)
    for seed in range(200):
        sides = []
        for crop in cut_views(image, 96, random.Random(seed)):
            left, top, right, bottom = crop.place
            sides += [abs(right - left), bottom - top]
        allowed = [r for r in (1, 2, 4, 8) if r == 1 or all(side / r >= 96 for side in sides)]
        assert found[-1] == max(allowed), sides
    assert set(found) == {1, 2, 4}


def photograph(width, height):
    """Return a smooth image with detail, which a JPEG preserves well."""
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=2)
    return Image.fromarray((127 + 120 * waves).astype(np.uint8))


@pytest.mark.parametrize("turned", [False, True])
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path, monkeypatch, turned):
    path, exif = tmp_path / "x.jpg", Image.Exif()
    exif[0x0112] = 6 if turned else 1
    photograph(1600, 1200).save(path, quality=95, exif=exif)
    decoded = []
    whole = LazyImage.decode

    def spy(picture, reduction=1):
        image = whole(picture, reduction)
        decoded.append(image.size)
        return image

    def crops(seed):
        picture = read_image(str(path), path.read_bytes)
        return cut_views(picture, 64, random.Random(seed))

    for seed in range(6):
        monkeypatch.setattr(LazyImage, "decode", spy)
        small = crops(seed)
        monkeypatch.setattr(LazyImage, "decode", lambda picture, _: whole(picture, 1))
        full = crops(seed)
        for a, b in zip(small, full, strict=True):
            assert a.place == b.place
            difference = np.abs(a.pixels.astype(float) - b.pixels)
            assert difference.mean() < 1.5  # of 255
    upright = (1200, 1600) if turned else (1600, 1200)
    assert min(size[0] for size in decoded) < upright[0] / 2
    for width, height in decoded:
        assert (upright[0] % width, upright[1] % height) == (0, 0)


def test_normalisation_uses_the_models_mean_and_deviation():
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    got = plain_view(32, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125), 1.0, "center", "bicubic")(grey)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        assert got[channel].mean().item() == pytest.approx((128 / 255 - mean) / std, abs=1e-5)


def test_derived_seeds_differ():
    seeds = {derived_seed(a, b, c) for a in range(4) for b in range(10) for c in range(50)}
    assert len(seeds) == 2000
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)


def test_shapes_open_with_all_their_test_sets_and_draw_nothing_yet(tmp_path):
    config = RunConfig(dataset="shapes", data_dir=str(tmp_path / "drawn"), batch_size=32)
    data = open_data(config, 32)
    assert ["val", *data.benchmarks] == benchmark_names(config) == ["val", *dataset.SHIFTED]
    assert not (tmp_path / "drawn").exists()
    wanted = dataset.draw("val", 5, 32)
    assert np.array_equal(np.asarray(data.val.image(5).decode()), wanted.image)
    assert data.val.labels[5] == wanted.label
    assert data.fingerprint() == open_data(config, 32).fingerprint()
    assert data.fingerprint() != open_data(config, 48).fingerprint()
