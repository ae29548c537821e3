"""Color augmentation of a batch of crops on the training device.

Color jitter, Gaussian blur and normalization with separate parameters for each image: the
torchvision transforms of these names, for a whole batch at once. The host knows which images an
operation applies to, so nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FACTORS, ORDER, SIGMA = slice(0, 4), slice(4, 8), 8  # columns of `Crop.color`
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, rounded as in torchvision and PIL
# Pixels per step: on a CPU they fit a core's cache, on a GPU they limit the memory.
_AT_ONCE = {"cpu": 2**16, "cuda": 2**23}


@torch.no_grad()
def augment(
    pixels: Tensor,
    color: Tensor,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
) -> Tensor:
    """Apply color jitter, blur and normalization to crops.

    Args:
        pixels: (B, S, S, 3) uint8, on the device that does the work.
        color: (B, 9) on the CPU, see `data.crops.Crop`.
        mean, std: of the normalization, one number per channel; tensors on that device avoid a
            transfer that the host would have to wait for.

    Returns:
        (B, 3, S, S) float32 on the device of `pixels`.
    """
    batch, side = pixels.shape[:2]
    device = pixels.device
    out = torch.empty(batch, 3, side, side, device=device)
    mean, std = (torch.as_tensor(v, device=device).view(3, 1, 1) for v in (mean, std))
    at_once = max(1, _AT_ONCE.get(device.type, 2**20) // side**2)
    for part, x, values in zip(
        out.split(at_once), pixels.split(at_once), color.split(at_once), strict=True
    ):
        part.copy_(x.permute(0, 3, 1, 2)).div_(255)  # (b, S, S, 3) -> (b, 3, S, S)
        _jitter(part, values)
        blur(part, values[:, SIGMA])
        part.sub_(mean).div_(std)
    return out


def _jitter(images: Tensor, color: Tensor) -> None:
    """Jitter images (b, 3, S, S) in [0, 1] in place, each in its own order of operations."""
    order = color[:, ORDER].long()
    factors = color[:, FACTORS].to(images.device, non_blocking=True)
    for turn in range(4):
        for number, change in enumerate(_CHANGES):
            rows = (order[:, turn] == number).nonzero().flatten()
            if len(rows) == len(images):
                images.copy_(change(images, factors[:, number]))
            elif len(rows):
                rows = rows.to(images.device, non_blocking=True)
                images[rows] = change(images[rows], factors[rows, number])


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply images (b, 3, S, S) in [0, 1] by a factor (b,) each."""
    return (images * _per_picture(factors)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the contrast of images (b, 3, S, S) about their mean gray by a factor (b,) each."""
    return _blend(images, _grey(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Scale the saturation of images (b, 3, S, S) about their grayscale copies by (b,) factors."""
    return _blend(images, _grey(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Rotate the hue of images (b, 3, S, S), each by a fraction (b,) of the full circle.

    In HSV, each channel is value − chroma·w(hue), with w a trapezoid of the hue that differs
    between the channels by a third of the circle: value and chroma are kept, and no saturation is
    needed (the "alternative" HSV to RGB of Smith's model, SIGGRAPH 1978).
    """
    red, green, blue = images.unbind(dim=1)  # (b, S, S)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma == 0, 1, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )  # in sixths of the circle, from -1 to 5
    hue += 6 * shifts.view(-1, 1, 1)
    turned = torch.empty_like(images)
    for channel, offset in enumerate((5, 3, 1)):
        k = torch.remainder(hue + offset, 6)
        weight = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(value, chroma, weight, value=-1, out=turned[:, channel])
    return turned


_CHANGES = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def blur(images: Tensor, sigmas: Tensor) -> None:
    """Blur images (b, 3, S, S) in place, each with its sigma in pixels; 0 leaves it unchanged.

    Like torchvision's `gaussian_blur` with a kernel of a tenth of the side and reflected borders,
    as two products with a banded (S, S) matrix per image. `sigmas`: (b,), on the CPU.
    """
    rows = sigmas.nonzero().flatten()
    if not len(rows):
        return
    # Built on the device: the matrix is larger than the images, and copying it would block.
    sigmas = sigmas[rows].to(images.device, non_blocking=True)
    matrix = _blur_matrix(sigmas, images.shape[-1]).unsqueeze(1)  # (n, 1, S, S)
    rows = rows.to(images.device, non_blocking=True)
    images[rows] = matrix @ images[rows] @ matrix.transpose(2, 3)


def _blur_matrix(sigmas: Tensor, side: int) -> Tensor:
    """Return (n, side, side): row i holds the weights of the input pixels for output pixel i."""
    taps, device = max(3, side // 10 | 1), sigmas.device
    offsets = torch.arange(taps, device=device) - taps // 2
    weights = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)  # (n, taps)
    weights /= weights.sum(dim=1, keepdim=True)
    seen = (torch.arange(side, device=device)[:, None] + offsets).abs()  # reflected at 0 ...
    seen = (side - 1) - (side - 1 - seen).abs()  # ... and at the other end; (side, taps)
    matrix = torch.zeros(len(sigmas), side, side, device=device)
    shape = (len(sigmas), side, taps)
    return matrix.scatter_add_(2, seen.expand(shape), weights[:, None].expand(shape))


def _grey(images: Tensor) -> Tensor:
    """Return grayscale images (b, 1, S, S)."""
    red, green, blue = images.unbind(dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2]).unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    factors = _per_picture(factors)
    return (images * factors).add_(other * (1 - factors)).clamp_(0, 1)


def _per_picture(factors: Tensor) -> Tensor:
    return factors.view(-1, 1, 1, 1)
