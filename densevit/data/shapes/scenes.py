"""Scenes of the built-in data set `shapes-many`: 3 to 5 objects that partly hide each other.

The placement does not depend on the image's size or on the painting, and the objects' number,
areas, positions, order and colors do not depend on their classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from densevit.data.shapes.canvas import Recipe, blend, fill, lerp, random_color
from densevit.data.shapes.outlines import CLASSES
from densevit.data.shapes.placement import Placed, form, position
from densevit.data.shapes.recipes import MANY
from densevit.data.shapes.styles import draw_ground, enlarge, finish
from densevit.data.shapes.textures import scrap

OBJECTS = (3, 5)

# The least share of an object that is visible: in front of it are other objects, and in
# `shapes-many-a` also occluders. What lies outside the image counts as hidden.
VISIBLE = 0.5  # without the occluders
VISIBLE_BEHIND_OCCLUDERS = 0.4

_GRID = 64  # pixels per side of the grid on which visibility is checked, for images of every size
_TRIES = 20
_STEP = 0.09  # of lightness, from an object to the next lighter one
_KEYS = 100  # added to the split's index in the seed: no split of `shapes` has the same seed


@dataclass(frozen=True)
class Occluder:
    """A blob or stroke without a class in front of the objects: see `textures.scrap`."""

    key: int
    center: np.ndarray
    reach: float

    def cover(self, size: int) -> np.ndarray:
        return scrap(Generator(PCG64(self.key)), self.center, self.reach, size)


def place_scene(split: str, index: int, seed: int = 0) -> tuple[Placed, ...]:
    """Return the objects of an image of `shapes-many`, from back to front.

    At least half of each is visible on a grid of 64 pixels a side, before the occluders of
    `shapes-many-a` are added. Raises KeyError for an unknown split.
    """
    return _place(_generators(split, index, seed)[0], MANY[split])


def paint_scene(split: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, uint8 (S, S, 3), and its mask, uint8 (S, S).

    The mask is the index in `CLASSES` plus 1 of the front-most object, and 0 elsewhere.
    """
    recipe = MANY[split]
    placing, painting = _generators(split, index, seed)
    placed = _place(placing, recipe)
    occluders = _place_occluders(placing, placed, recipe)
    ground = draw_ground(painting, lambda rng, r: _tones(rng, r, len(placed)), recipe, size)
    image = ground.image
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    for number, one in enumerate(placed):
        image, cover = ground.put(image, one.loops(), number)
        mask[cover >= 0.5] = CLASSES.index(one.name) + 1
    for occluder in occluders:
        cover = occluder.cover(len(image))
        tone = ground.tone + 0.3 * (painting.random() - 0.5)
        image = blend(image, random_color(painting, tone), cover)
        mask[cover >= 0.5] = 0
    return finish(painting, image, recipe, size), enlarge(mask, size)


def _generators(split: str, index: int, seed: int) -> tuple[Generator, Generator]:
    """Return the random numbers for placing and for painting an image."""
    key = SeedSequence([seed, _KEYS + list(MANY).index(split), index])
    placing, painting = (Generator(PCG64(part)) for part in key.spawn(2))
    return placing, painting


# --- placement -----------------------------------------------------------------------------------


def _place(rng: Generator, recipe: Recipe) -> tuple[Placed, ...]:
    count = rng.integers(OBJECTS[0], OBJECTS[1] + 1)
    names = [CLASSES[label] for label in rng.permutation(len(CLASSES))[:count]]
    # Only positions are drawn again, so that no class or area is rejected more often than others.
    matrices = [form(rng.random(4), recipe) for _ in names]
    while True:
        placed = _positions(rng, names, matrices, recipe)
        if placed:
            return placed


def _positions(
    rng: Generator, names: list[str], matrices: list[np.ndarray], recipe: Recipe
) -> tuple[Placed, ...]:
    """Return the objects at random positions, each sufficiently visible; empty if that fails."""
    placed: list[Placed] = []
    visible: list[np.ndarray] = []
    for name, matrix in zip(names, matrices, strict=True):
        for _ in range(_TRIES):
            u = rng.random(2)
            u = u - 0.06 * np.sin(2 * np.pi * u)  # nearer to the border than uniform positions
            one = Placed(name, matrix, position(u, name, matrix, recipe))
            left = _put_in_front(visible, one)
            if _enough([*placed, one], left, VISIBLE):
                break
        else:
            return ()
        placed.append(one)
        visible = left
    return tuple(placed)


def _put_in_front(visible: list[np.ndarray], one: Placed) -> list[np.ndarray]:
    """Return the visible pixels of each object, one more object being in front of them."""
    pixels = fill(one.loops(), _GRID) >= 0.5
    return [*(other & ~pixels for other in visible), pixels]


def _enough(placed: Sequence[Placed], visible: list[np.ndarray], share: float) -> bool:
    """Return True if enough pixels of each object are visible; those outside count as hidden."""
    return all(
        pixels.sum() >= share * one.area * _GRID**2
        for one, pixels in zip(placed, visible, strict=True)
    )


def _place_occluders(rng: Generator, placed: tuple[Placed, ...], recipe: Recipe) -> list[Occluder]:
    """Place occluders on objects so that each object stays sufficiently visible."""
    occluders: list[Occluder] = []
    if not recipe.cover[1]:
        return occluders
    visible: list[np.ndarray] = []
    for one in placed:
        visible = _put_in_front(visible, one)
    for _ in range(rng.integers(recipe.cover[0], recipe.cover[1] + 1)):
        loop = placed[rng.integers(len(placed))].loops()[0]
        low, high = loop.min(axis=0), loop.max(axis=0)
        u = rng.random(3)
        reach = (0.2 + 0.2 * u[2]) * (high - low).max()
        occluder = Occluder(int(rng.integers(2**63)), low + (high - low) * u[:2], reach)
        hidden = occluder.cover(_GRID) >= 0.5
        left = [pixels & ~hidden for pixels in visible]
        if _enough(placed, left, VISIBLE_BEHIND_OCCLUDERS):
            visible = left
            occluders.append(occluder)
    return occluders


# --- colors --------------------------------------------------------------------------------------


def _tones(rng: Generator, recipe: Recipe, count: int) -> tuple[float, ...]:
    """Draw the lightness of the ground and of each object: all differ, in random order."""
    gap, middle, side = rng.random(3)
    # The steps are those of the most objects, so that the ground does not depend on their number.
    steps = lerp(gap, recipe.contrast) + _STEP * np.arange(OBJECTS[1])
    middle = lerp(middle, (0.1 + steps[-1] / 2, 0.9 - steps[-1] / 2))
    sign = 1 if side < recipe.light else -1
    ground = middle - sign * steps[-1] / 2
    return (ground, *(ground + sign * rng.permutation(steps)[:count]))
