"""Textures and clutter: fields, surfaces and scraps."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image

from densevit.data.shapes.canvas import (
    Range,
    Recipe,
    _grid,
    blend,
    fill,
    lerp,
    random_color,
    stroke,
)


def draw_field(rng: Generator, kind: str, size: int, period: Range = (0.14, 0.4)) -> np.ndarray:
    """Draw a texture of one of FIELDS, (S, S) in [0, 1]; `period` is a fraction of the side."""
    u = rng.random(4)
    x, y = _grid(size)
    angle = np.pi * u[0]
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    turns = 2 * np.pi / lerp(u[1], period)
    field: np.ndarray
    if kind == "slope":
        low, high = along[[0, -1]][:, [0, -1]].min(), along[[0, -1]][:, [0, -1]].max()
        field = (along - low) / (high - low)
    elif kind == "stripes":
        field = 0.5 + 0.5 * np.sin(turns * along + 6 * u[2])
    elif kind == "checks":
        field = 0.5 + 0.5 * np.sin(turns * along + 6 * u[2]) * np.sin(turns * across + 6 * u[3])
    elif kind == "dots":
        bumps = np.sin(turns * along + 6 * u[2]) + np.sin(turns * across + 6 * u[3])
        field = np.clip(0.6 * bumps, 0, 1)
    elif kind == "waves":
        bent = along + 0.06 * np.sin(turns * across + 6 * u[3])
        field = 0.5 + 0.5 * np.sin(turns * bent + 6 * u[2])
    else:  # "clouds"
        cells = 4 + int(u[1] * 5)
        coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
        field = np.asarray(fine, dtype=np.float64) / 255
    return field


FIELDS = ("slope", "stripes", "checks", "dots", "waves", "clouds")


def surface(rng: Generator, tone: float, recipe: Recipe, size: int) -> np.ndarray:
    """Draw a textured surface, (S, S, 3), whose lightness stays near `tone`."""
    depth = lerp(rng.random(), recipe.texture)
    kind = FIELDS[rng.integers(len(FIELDS))]
    light, dark = random_color(rng, tone + depth / 2), random_color(rng, tone - depth / 2)
    field = draw_field(rng, kind, size, scaled((0.14, 0.4), recipe))
    colors: np.ndarray = dark + (light - dark) * field[..., None]
    return colors


def scaled(period: Range, recipe: Recipe) -> Range:
    return period[0] * recipe.detail, period[1] * recipe.detail


def scrap(rng: Generator, centre: np.ndarray, reach: float, size: int) -> np.ndarray:
    """Return the coverage, (S, S), of an irregular blob or stroke that belongs to no class."""
    blob = rng.random() < 0.5
    u = rng.random((12, 2))
    if blob:
        radius = reach * (0.45 + 0.55 * u[:, :1])
        angle = 2 * np.pi * (np.arange(12) + 0.6 * u[0, 1]) / 12
        squeeze = np.array([1.0, 0.35 + 0.3 * u[1, 1]])
        loop = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) * squeeze
        turn = np.pi * u[2, 1]
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return fill([centre + loop @ spin], size)
    steps = reach * 1.6 * (2 * u[:4] - 1)
    return stroke([centre + steps], 0.02 + 0.03 * u[4, 0], size)


def add_clutter(
    rng: Generator, image: np.ndarray, tone: float, recipe: Recipe, size: int
) -> np.ndarray:
    """Add scraps to the image whose lightness is near `tone`."""
    for _ in range(rng.integers(recipe.clutter[0], recipe.clutter[1] + 1)):
        u = rng.random(4)
        cover = scrap(rng, u[:2], recipe.detail * (0.07 + 0.11 * u[2]), size)
        image = blend(image, random_color(rng, tone + 0.3 * (u[3] - 0.5)), cover)
    return image
