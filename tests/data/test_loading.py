"""Views and batches: what is drawn depends on seed, epoch and picture, and on nothing else."""

import numpy as np
import pytest
import torch
from PIL import Image

from densevit.config import RunConfig
from densevit.data import shapes
from densevit.data.folders import scan
from densevit.data.loading import plain_batches, training_batches
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
    return [
        torch.cat([part.flatten(1) if part.ndim > 1 else part[:, None] for part in batch], 1)
        for batch in batches
    ]


def test_an_epoch_is_the_same_with_any_number_of_workers_and_batch_size(blobs):
    torch.manual_seed(1)
    plain = torch.cat(epoch_of(blobs, 3))
    torch.manual_seed(2)  # what the run itself draws makes no difference
    assert torch.equal(plain, torch.cat(epoch_of(blobs, 3, workers=2)))
    assert torch.equal(plain, torch.cat(epoch_of(blobs, 3, batch_size=4))[: len(plain)])


def test_epochs_seeds_and_views_differ(blobs):
    first = torch.cat(epoch_of(blobs, 0))
    assert not torch.equal(first, torch.cat(epoch_of(blobs, 1)))
    assert not torch.equal(first, torch.cat(epoch_of(blobs, 0, seed=1)))
    half = (first.shape[1] - 2) // 2
    assert not torch.equal(first[:, :half], first[:, half : 2 * half])


def test_loading_leaves_the_runs_own_random_numbers_alone(blobs):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    epoch_of(blobs, 0)
    assert torch.equal(torch.rand(3), wanted)


def test_an_epoch_holds_each_picture_at_most_once_and_drops_the_rest(blobs):
    batches = epoch_of(blobs, 0)
    indices = torch.cat(batches)[:, -1].int().tolist()
    assert len(batches) == 42 // 8
    assert len(set(indices)) == len(indices) == 40


def test_plain_batches_hold_every_picture_once(blobs):
    view = plain_view(32, MEAN, STD, 1.0, "bicubic")
    images = scan(blobs / "train", "x")
    batches = plain_batches(images, view, batch_size=9, workers=0, pin=False)
    labels, indices = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
    assert indices.tolist() == list(range(42))
    assert labels.tolist() == list(images.labels)


def rows_and_columns(size=96):
    """A picture whose red and green say where a pixel is."""
    rows, columns = np.mgrid[0:size, 0:size]
    pixels = np.stack([rows, columns, rows * 0], -1) * 255 / (size - 1)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize(("number", "least"), [(0, 0.08), (1, 0.2)])
def test_crops_have_the_area_that_the_design_says(number, least):
    """Seen in the spread of the coordinates that a crop of a coordinate picture still holds."""
    size, shares = 96, []
    views = training_views(32, (0, 0, 0), (1, 1, 1))
    # Without colours changed, what is left of the coordinates is the crop's.
    kept = [t for t in views[number].transforms if "Jitter" not in type(t).__name__]
    for draw in range(300):
        torch.manual_seed(draw)
        picture = rows_and_columns(size)
        for transform in kept:
            picture = transform(picture)
        red, green = picture[0].double(), picture[1].double()
        shares.append(float((red.max() - red.min()) * (green.max() - green.min())))
    assert min(shares) > 0.7 * least
    assert min(shares) < 1.6 * least
    assert max(shares) > 0.9


def test_view_2_is_blurred_one_time_in_five():
    _, view = training_views(32, MEAN, STD)
    (applied,) = [t for t in view.transforms if "Apply" in type(t).__name__]
    sharp = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    blurred = sum(not torch.equal(applied(sharp), sharp) for _ in range(1000))
    assert 150 < blurred < 250  # four standard deviations


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
