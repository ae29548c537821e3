"""Views and batches: what is drawn depends on seed, epoch and picture, and on nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image

from densevit.config import RunConfig
from densevit.data import shapes
from densevit.data.folders import scan
from densevit.data.loading import Batch, plain_batches, probe_batch, training_batches
from densevit.data.sources import benchmark_names, open_data
from densevit.data.views import derived_seed, plain_view, training_views

MEAN = STD = (0.5, 0.5, 0.5)


def epoch_of(blobs, epoch, *, seed=0, workers=0, batch_size=8):
    views = training_views(32, MEAN, STD)
    images = scan(blobs / "train", "x")
    batches, order = training_batches(
        images, views, batch_size=batch_size, seed=seed, workers=workers, pin=False
    )
    order.epoch = epoch
    return list(batches)


def joined(batches):
    """All pictures of an epoch as one batch."""
    return Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_is_the_same_with_any_number_of_workers_and_batch_size(blobs):
    torch.manual_seed(1)
    plain = joined(epoch_of(blobs, 3))
    torch.manual_seed(2)  # what the run itself draws makes no difference
    assert equal(plain, joined(epoch_of(blobs, 3, workers=2)))
    by_four = joined(epoch_of(blobs, 3, batch_size=4))
    assert equal(plain, [part[: len(plain.ids)] for part in by_four])


def test_epochs_seeds_and_views_differ(blobs):
    first = joined(epoch_of(blobs, 0)[:1])
    for other in (epoch_of(blobs, 1), epoch_of(blobs, 0, seed=1)):
        other = joined(other)
        assert not torch.equal(first.ids, other.ids[:8])
        # Of the same picture too: another view from another place.
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


def test_the_probe_holds_the_same_views_of_pictures_from_every_class(blobs):
    images = scan(blobs / "train", "x")
    torch.manual_seed(1)
    probe = probe_batch(images, training_views(32, MEAN, STD), 9)
    random_state = torch.get_rng_state()
    assert equal(probe, probe_batch(images, training_views(32, MEAN, STD), 9))
    assert torch.equal(torch.get_rng_state(), random_state)
    # No picture and no free slot of a queue has the id of one of them.
    assert probe.ids.tolist() == [-2] * 9
    # 16, 12 and 14 pictures, which lie class by class: 9 at equal steps are about 3 of each.
    assert sorted(images.labels) == list(images.labels)
    assert probe.labels.bincount().tolist() in ([3, 3, 3], [4, 2, 3], [4, 3, 2])
    assert len({tuple(view.flatten().tolist()) for view in probe.view1}) == 9
    assert not torch.equal(probe.view1, probe.view2)


def test_the_probe_holds_at_most_every_picture_once(blobs):
    images = scan(blobs / "val", "x")
    probe = probe_batch(images, training_views(32, MEAN, STD), 1000)
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
    view = plain_view(32, MEAN, STD, 1.0, "bicubic")
    images = scan(blobs / "train", "x")
    batches = plain_batches(images, view, batch_size=9, workers=0, pin=False)
    labels, indices = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
    assert indices.tolist() == list(range(42))
    assert labels.tolist() == list(images.labels)


def coordinates(height, width):
    """Two pictures whose pixels hold the x, or the y, of their own centre."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    return Image.fromarray(x), Image.fromarray(y)


def places_and_pixels(number, pictures, draws, size=32):
    """For each draw: the place that a view records, and the x and y that its pixels hold."""
    view = training_views(size, MEAN, STD)[number]
    view.rest = lambda image: torch.from_numpy(np.array(image)).double()  # no colours changed
    for draw in range(draws):
        read = []
        for picture in pictures:
            torch.manual_seed(draw)
            pixels, place = view(picture)
            read.append(pixels)
        yield place, *read


@pytest.mark.parametrize("number", [0, 1])
def test_the_recorded_place_is_what_the_pixels_show(number):
    flips = 0
    for place, x, y in places_and_pixels(number, coordinates(90, 130), 200):
        left, top, right, bottom = place.tolist()
        shares = (torch.arange(32) + 0.5) / 32  # of the view, at the centres of its pixels
        # Resampling repeats a ramp to a few hundredths of a pixel (its kernel is sampled), but for the
        # rim, where the kernel is cut off at the crop.
        inner = slice(3, -3)
        across, down = left + shares * (right - left), top + shares * (bottom - top)
        torch.testing.assert_close(x[:, inner].mean(0), across[inner].double(), rtol=0, atol=0.05)
        torch.testing.assert_close(y[inner].mean(1), down[inner].double(), rtol=0, atol=0.05)
        assert 0 <= min(left, right) < max(left, right) <= 130
        assert 0 <= top < bottom <= 90
        assert (right < left) == bool(x[0, 0] > x[0, -1])
        flips += right < left
    assert 70 < flips < 130  # of 200, a half: four standard deviations


@pytest.mark.parametrize(("number", "least"), [(0, 0.08), (1, 0.2)])
def test_crops_have_the_area_that_the_design_says(number, least):
    shares = []
    for place, *_ in places_and_pixels(number, coordinates(96, 96), 300):
        left, top, right, bottom = place.tolist()
        shares.append(abs(right - left) * (bottom - top) / 96**2)
    # Sides are rounded to whole pixels, of at least 23 each: by 2 % of the area.
    assert min(shares) > 0.95 * least
    assert min(shares) < 1.4 * least
    assert max(shares) > 0.9


def test_view_2_is_blurred_one_time_in_five():
    view1, view2 = training_views(32, MEAN, STD)
    (applied,) = [t for t in view2.rest.transforms if "Apply" in type(t).__name__]
    assert not [t for t in view1.rest.transforms if "Apply" in type(t).__name__]
    sharp = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    blurred = sum(not torch.equal(applied(sharp), sharp) for _ in range(1000))
    assert 150 < blurred < 250  # four standard deviations


def test_the_colours_of_a_view_are_changed():
    grey = Image.new("RGB", (40, 40), (128, 100, 90))
    for view in training_views(32, MEAN, STD):
        colours = set()
        for draw in range(10):
            torch.manual_seed(draw)
            pixels, _ = view(grey)
            assert pixels.shape == (3, 32, 32)
            colours.add(tuple(pixels.mean((1, 2)).tolist()))
        assert len(colours) == 10


def test_normalisation_uses_the_models_mean_and_deviation():
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    got = plain_view(32, (0.1, 0.2, 0.3), (0.5, 0.25, 0.125), 1.0, "bicubic")(grey)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
        assert got[channel].mean().item() == pytest.approx((128 / 255 - mean) / std, abs=1e-5)


def test_derived_seeds_differ():
    seeds = {derived_seed(a, b, c) for a in range(4) for b in range(10) for c in range(50)}
    assert len(seeds) == 2000
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)


def test_shapes_open_with_all_their_test_sets_and_draw_nothing_yet(tmp_path):
    config = RunConfig(dataset="shapes", data_dir=str(tmp_path / "drawn"), batch_size=32)
    data = open_data(config, 32)
    assert ["val", *data.benchmarks] == benchmark_names(config) == ["val", *shapes.SHIFTED]
    assert not (tmp_path / "drawn").exists()
    wanted = shapes.draw("val", 5, 32)
    assert np.array_equal(np.asarray(data.val.image(5)), wanted.image)
    assert data.val.labels[5] == wanted.label
    assert data.fingerprint() == open_data(config, 32).fingerprint()
    assert data.fingerprint() != open_data(config, 48).fingerprint()
