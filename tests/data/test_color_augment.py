"""Color augmentation of batches, compared with torchvision's transforms of one image."""

import random

import pytest
import torch

from densevit.data import color_augment
from densevit.data.color_augment import augment
from densevit.data.crops import RECIPES, draw_view
from densevit.utils.torchvision_compat import ensure_torchvision

ensure_torchvision()

from torchvision.transforms import functional as tv  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(count, side):
    """Return noise, gradients, and hard cases for hue and saturation: grays and pure colors."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    made[1] = (torch.arange(side) * 255 // side).view(-1, 1, 1).to(torch.uint8)
    made[2] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    made[3] = torch.tensor([0, 128, 128], dtype=torch.uint8)
    made[4] = 0
    made[5] = 255
    return made


def drawn(count, seed=0):
    draws = random.Random(seed)
    return torch.tensor([draw_view(RECIPES[1], (64, 48), draws)[1] for _ in range(count)])


def one_by_one(pixels, color):
    """Return torchvision's result for each image with the same parameters."""
    side = pixels.shape[1]
    kernel = max(3, side // 10 | 1)
    changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    made = []
    for picture, (*factors, sigma) in zip(pixels, color.tolist(), strict=True):
        x = tv.convert_image_dtype(picture.permute(2, 0, 1), torch.float32)
        for number in factors[4:]:
            x = changes[int(number)](x, factors[int(number)])
        if sigma > 0:
            x = tv.gaussian_blur(x, [kernel, kernel], [sigma, sigma])
        made.append(tv.normalize(x, MEAN, STD))
    return torch.stack(made)


@pytest.mark.parametrize(
    ("side", "at_once"), [(32, 1), (32, 5), (32, 1000), (33, 5), (96, 5), (224, 1000)]
)
def test_a_batch_equals_torchvision_picture_by_picture(monkeypatch, side, at_once):
    monkeypatch.setitem(color_augment._AT_ONCE, "cpu", at_once * side**2)
    pixels, color = pictures(24, side), drawn(24)
    assert (color[:, 8] > 0).sum() >= 3
    got = augment(pixels, color, MEAN, STD)
    assert got.shape == (24, 3, side, side)
    assert got.dtype == torch.float32
    # Of values that span about 4.5, in which a step of 1/255 is 0.017.
    torch.testing.assert_close(got, one_by_one(pixels, color), rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", range(4))
def test_each_change_is_torchvisions(number):
    pixels = pictures(12, 40)
    images = pixels.permute(0, 3, 1, 2).float() / 255
    low, high = (-0.5, 0.5) if number == 3 else (0.0, 2.0)
    factors = torch.linspace(low, high, 12)
    got = color_augment._CHANGES[number](images, factors)
    change = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)[number]
    wanted = torch.stack([change(x, f.item()) for x, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


# The kernel is a tenth of the side, but odd and not below 3.
@pytest.mark.parametrize(("side", "taps"), [(20, 3), (50, 5), (64, 7)])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_the_blur_is_torchvisions(side, taps, sigma):
    images = pictures(6, side).permute(0, 3, 1, 2).float() / 255
    wanted = tv.gaussian_blur(images, [taps, taps], [sigma, sigma])
    got = images.clone()
    color_augment.blur(got, torch.tensor([sigma, 0, sigma, sigma, 0, sigma]))
    wanted[[1, 4]] = images[[1, 4]]
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


def test_a_batch_is_independent_of_its_other_pictures():
    pixels, color = pictures(10, 32), drawn(10)
    whole = augment(pixels, color, MEAN, STD)
    for row in range(10):
        alone = augment(pixels[row : row + 1], color[row : row + 1], MEAN, STD)
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-5)
