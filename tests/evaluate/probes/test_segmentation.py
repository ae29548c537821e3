"""The dense probe: scores by hand, upsampling compared with torch, and what a patch can encode."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from torch.nn import functional as F

from densevit.config.run_config import RunConfig
from densevit.data.crops import plain_view
from densevit.evaluate.probes import segmentation
from densevit.evaluate.probes.run import SQUEEZED
from densevit.evaluate.probes.segmentation import Masked, count_pixels, dense_probe
from densevit.evaluate.segmentation_metrics import segmentation_metrics
from densevit.models.vit import DenseViT
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from torchmetrics.classification import MulticlassJaccardIndex  # noqa: E402

GRID = (4, 4)


def scored(answers, classes):
    """Return the metrics of pairs of masks."""
    answers = list(answers)
    return segmentation_metrics(
        count_pixels(answers, classes, [f"{i}.png" for i in range(len(answers))])
    )


def probed(train, test, classes, **settings):
    """Return the metrics of a dense probe."""
    samples = [f"{i}.png" for i in range(len(test.patches))]
    return segmentation_metrics(
        dense_probe(train, test, classes, GRID, samples=samples, **settings)
    )


def test_scores_are_those_by_hand():
    truth = torch.tensor([[0, 0, 1], [1, 255, 255]]), torch.tensor([[0, 1], [255, 0]])
    predicted = torch.tensor([[0, 1, 1], [1, 2, 0]]), torch.tensor([[0, 0], [3, 3]])
    found = scored(zip(predicted, truth, strict=True), list("abcd"))
    # Without void: truth 0 0 1 1 | 0 1 0, prediction 0 1 1 1 | 0 0 3. Class a: both 2, either 5;
    # b: both 2, either 4; c: only under void, so absent; d: both 0, either 1.
    own = {"iou_a": 40.0, "iou_b": 50.0, "iou_d": 0.0, "miou": 30.0, "pixel_accuracy": 400 / 7}
    interval = {name: found.pop(name) for name in ("miou_low", "miou_high")}
    assert found == pytest.approx({**own, "n": 2})
    # A resample of two images has both, or one of them twice: mIoU 30, or (50 + 66.7) / 2 of the
    # first, or (33.3 + 0 + 0) / 3 of the second.
    assert interval == pytest.approx({"miou_low": 100 / 9, "miou_high": 175 / 3})
    assert {type(v) for v in found.values()} == {float, int}


def test_the_mean_is_torchmetrics_own():
    draws = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (6, 20, 20), generator=draws)
    predicted = torch.randint(0, 5, (6, 20, 20), generator=draws)
    truth[torch.rand(6, 20, 20, generator=draws) < 0.2] = 255
    truth[truth == 3], predicted[predicted == 3] = 0, 0
    wanted = MulticlassJaccardIndex(5, ignore_index=255)(predicted, truth)
    found = scored(zip(predicted, truth, strict=True), list("abcde"))
    assert found["miou"] == pytest.approx(100 * float(wanted), rel=1e-5)
    assert "iou_d" not in found


def test_nothing_but_void_has_no_score():
    with pytest.raises(ValueError, match="void"):
        scored([(torch.zeros(2, 2), torch.full((2, 2), 255))], ["a", "b"])


@pytest.mark.parametrize("size", [(32, 32), (50, 21), (4, 3), (3, 2)])
def test_logits_are_upsample_as_torch_does_it(size):
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(logits.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation._upsample(logits, size).permute(0, 3, 1, 2), wanted)


def told(count, seed, classes=3, shape=(32, 32), void=0.0):
    """Return patches that encode their class (clearly, in one of seven features; the last feature
    is constant), and masks of cells."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, classes, (count, *GRID))
    patches = rng.normal(0, 0.1, (count, 16, 6)) + 40
    patches += np.eye(6)[cells.reshape(count, 16)] * 3
    patches = np.pad(patches, ((0, 0), (0, 0), (0, 1)), constant_values=7)
    masks = []
    for each in cells:
        mask = np.kron(each, np.ones((shape[0] // 4, shape[1] // 4))).astype(np.uint8)
        mask[rng.random(shape) < void] = 255
        masks.append(mask)
    return Masked(torch.from_numpy(patches).half(), masks.__getitem__)


def test_what_patches_tell_is_found_and_void_teaches_nothing():
    train, test = told(40, 0, classes=2, void=0.3), told(20, 1, classes=2, void=0.3)
    found = probed(train, test, ["a", "b"], size=32, steps=150)
    # As good as upsampling the true cells, which also loses corners of a checkered pattern.
    cells = torch.stack([test.patches[..., c].view(20, *GRID) > 41.5 for c in (0, 1)], dim=1)
    best = F.interpolate(cells.float(), (32, 32), mode="bilinear").argmax(dim=1)
    truth = torch.stack([torch.from_numpy(test.mask(i)) for i in range(20)])
    ceiling = 100 * (best == truth)[truth != 255].float().mean()
    assert ceiling > 95
    assert found["pixel_accuracy"] > ceiling - 1
    assert found["miou"] > 90
    assert found["n"] == 20
    # Tokens without information about the mask: chance.
    mute = Masked(test.patches.flip(0), test.mask)
    assert probed(train, mute, ["a", "b"], size=32, steps=150)["miou"] < 50


def test_masks_are_scored_at_their_own_size_up_to_the_bound(monkeypatch):
    seen = []
    own = segmentation.count_pixels

    def spy(answers, *names):
        kept = list(answers)
        seen.extend((tuple(p.shape), tuple(t.shape)) for p, t in kept)
        return own(kept, *names)

    monkeypatch.setattr(segmentation, "count_pixels", spy)
    train, test = told(20, 0), told(2, 1, shape=(40, 80))
    found = probed(train, test, ["a", "b", "c"], size=32, steps=100)
    assert seen == [((40, 80), (40, 80))] * 2
    assert found["pixel_accuracy"] > 90
    monkeypatch.setattr(segmentation, "LONGEST", 20)
    assert probed(train, test, ["a", "b", "c"], size=32, steps=100)["pixel_accuracy"] > 85
    assert seen[2:] == [((10, 20), (10, 20))] * 2


def test_equal_seeds_give_equal_scores():
    train, test = told(20, 0), told(5, 1)
    few = {"size": 32, "steps": 3, "batch_size": 4}
    torch.manual_seed(1)
    one = probed(train, test, ["a", "b", "c"], seed=5, **few)
    torch.manual_seed(2)
    assert probed(train, test, ["a", "b", "c"], seed=5, **few) == one
    assert probed(train, test, ["a", "b", "c"], seed=6, **few) != one


def test_a_step_of_nothing_but_void_does_no_harm():
    train = told(8, 0)
    masks = [np.full((32, 32), 255, np.uint8)] * 4 + [train.mask(i) for i in range(4, 8)]
    holes = Masked(train.patches, masks.__getitem__)
    found = probed(holes, train, ["a", "b", "c"], size=32, steps=100, batch_size=1)
    assert found["pixel_accuracy"] > 75


def test_mistakes_are_named():
    train = told(4, 0)
    short = Masked(train.patches[:, :15], train.mask)
    empty = Masked(train.patches, lambda _: np.full((32, 32), 255, np.uint8))
    for pair, names, said in [
        ((short, train), "abc", r"train: patches must be \(n, 16, E\)"),
        ((train, short), "abc", r"test: patches must be"),
        ((train, train), "ab", "mask 0: holds values beyond the 2 classes"),
        ((empty, train), "abc", "all pixels are void"),
    ]:
        with pytest.raises(ValueError, match=said):
            probed(*pair, list(names), size=32, steps=1)


def test_the_view_shows_the_whole_picture():
    model = DenseViT(RunConfig(**TINY), classes=3, pretrained=False)
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:30, :25], picture[30:, 25:] = 255, 128
    look = model.preprocessing()
    seen = plain_view(32, **{**look, **SQUEEZED})(Image.fromarray(picture))
    assert seen.shape == (3, 32, 32)
    seen = seen[0] * look["std"][0] + look["mean"][0]
    for part, value in [
        (seen[:14, :6], 1), (seen[:14, 10:], 0), (seen[18:, :6], 0), (seen[18:, 10:], 128 / 255),
    ]:  # fmt: skip
        torch.testing.assert_close(part, torch.full_like(part, value), atol=0.05, rtol=0)
