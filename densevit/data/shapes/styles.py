"""Paint grounds and objects in one of four styles.

Lengths are fractions of the image's side, so that one random key draws the same image at every
size. Colors do not depend on the class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from densevit.data.shapes.canvas import Recipe, blend, fill, lerp, random_color, stroke
from densevit.data.shapes.outlines import Loops
from densevit.data.shapes.placement import place_one
from densevit.data.shapes.textures import FIELDS, add_clutter, draw_field, scaled, scrap, surface

# Draws the lightness of the ground and of each object.
Tones = Callable[[Generator, Recipe], tuple[float, ...]]

# Paints the outline of object k, counted from the back, over an image, (S, S, 3). Returns the image
# and the object's coverage of each pixel, (S, S) in [0, 1].
Put = Callable[[np.ndarray, Loops, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Ground:
    """An image without objects, (S, S, 3) in [0, 1], its lightness, and how an object is added.

    Drawings of large dots have fewer pixels than the final image; see `finish`.
    """

    image: np.ndarray
    tone: float
    put: Put


Style = Callable[[Generator, Tones, Recipe, int], Ground]


def draw_ground(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw the ground of an image in the recipe's style; a rendition is one of three."""
    if recipe.style == "rendition":
        return RENDITIONS[rng.integers(len(RENDITIONS))](rng, tones, recipe, size)
    return STYLES[recipe.style](rng, tones, recipe, size)


def finish(rng: Generator, image: np.ndarray, recipe: Recipe, size: int) -> np.ndarray:
    """Return the image as uint8 (S, S, 3), enlarged if it has fewer pixels, with noise."""
    image = enlarge(image, size)
    # Noise comes last: its number of draws depends on the size, which must shift no other draw.
    image = image + recipe.noise * (2 * rng.random((size, size, 3)) - 1)
    rounded: np.ndarray = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return rounded


def enlarge(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat rows and columns of an array, (K, K, ...), until each has `size` values."""
    at = np.arange(size) * len(array) // size
    return array if len(array) == size else array[at][:, at]


def paint(rng: Generator, name: str, recipe: Recipe, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of the outline, uint8 (S, S, 3), and its visible pixels, bool (S, S)."""
    loops = place_one(rng, name, recipe).loops()
    ground = draw_ground(rng, _two_tones, recipe, size)
    image, visible = ground.put(ground.image, loops, 0)
    if recipe.cover[1]:
        image, visible = _hide(rng, image, visible, loops, ground.tone, recipe)
    return finish(rng, image, recipe, size), enlarge(visible, size) >= 0.5


def _two_tones(rng: Generator, recipe: Recipe) -> tuple[float, float]:
    """Draw the lightness of background and object."""
    gap, middle, side = rng.random(3)
    gap = lerp(gap, recipe.contrast)
    middle = lerp(middle, (0.12 + gap / 2, 0.88 - gap / 2))
    sign = 0.5 if side < recipe.light else -0.5
    return middle - sign * gap, middle + sign * gap


def _hide(
    rng: Generator, image: np.ndarray, whole: np.ndarray, loops: Loops, tone: float, recipe: Recipe
) -> tuple[np.ndarray, np.ndarray]:
    """Hide parts of the object behind scraps; return the image and the visible coverage."""
    visible = whole
    low, high = loops[0].min(axis=0), loops[0].max(axis=0)
    for _ in range(rng.integers(recipe.cover[0], recipe.cover[1] + 1)):
        u = rng.random(4)
        reach = (0.2 + 0.2 * u[2]) * (high - low).max()
        cover = scrap(rng, low + (high - low) * u[:2], reach, len(image))
        color = random_color(rng, tone + 0.3 * (u[3] - 0.5))
        left = visible * (1 - cover)
        if left.sum() >= 0.6 * whole.sum():  # a mostly hidden object shows no class
            visible, image = left, blend(image, color, cover)
    return image, visible


# --- styles --------------------------------------------------------------------------------------


def _photo(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    ground, *objects = tones(rng, recipe)
    image = surface(rng, ground, recipe, size)
    image = add_clutter(rng, image, ground, recipe, size)

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        # A long outline mixes more pixels of both colors than a short one, which a histogram would
        # show; the blur of the edge varies more than these lengths do.
        whole = fill(loops, size, lerp(rng.random(), recipe.soft))
        if recipe.shadow:
            below = fill([loop + 0.012 for loop in loops], size, 0.03)
            image = image * (1 - recipe.shadow * below[..., None])
        return blend(image, surface(rng, objects[number], recipe, size), whole), whole

    return Ground(image, ground, put)


def _cartoon(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw flat, strong colors inside a thick dark line."""
    ground, *objects = tones(rng, recipe)
    flat = np.broadcast_to(random_color(rng, ground, 0.6), (size, size, 3))
    image = add_clutter(rng, flat, ground, recipe, size)

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        whole = fill(loops, size)
        image = blend(image, random_color(rng, objects[number], 0.6), whole)
        line = stroke(loops, 0.045 * recipe.detail, size, closed=True)
        return blend(image, np.full(3, 0.06), line), np.maximum(whole, line)

    return Ground(image, ground, put)


def _stitched(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw embroidery: parallel threads of one color, with a seam, on woven cloth."""
    ground, *objects = tones(rng, recipe)
    cloth = draw_field(rng, "checks", size, scaled((0.08, 0.12), recipe))[..., None]
    image = random_color(rng, ground, 0.2) + 0.14 * (cloth - 0.5)
    image = add_clutter(rng, image, ground, recipe, size)

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        whole = fill(loops, size)
        thread = random_color(rng, objects[number], 0.6)
        lit = draw_field(rng, "stripes", size, scaled((0.09, 0.13), recipe))[..., None]
        image = blend(image, thread + 0.35 * (lit - 0.6), whole)
        seam = stroke(loops, 0.03 * recipe.detail, size, closed=True)
        return blend(image, thread * 0.75, seam), np.maximum(whole, seam)

    return Ground(image, ground, put)


def _pixelled(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw large square dots of few colors; the mask follows the dots."""
    dots = round(20 / recipe.detail)
    ground, *objects = tones(rng, recipe)
    flat = np.broadcast_to(random_color(rng, ground, 0.5), (dots, dots, 3))
    image = add_clutter(rng, flat, ground, recipe, dots)

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        inside = (fill(loops, dots) >= 0.5).astype(np.float64)
        image = blend(image, random_color(rng, objects[number], 0.5), inside)
        return np.round(image * 5) / 5, inside

    return Ground(image, ground, put)


def _stylized(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw strong patterns everywhere: one on the background, others on the objects."""
    ground, *objects = tones(rng, recipe)
    first, *others = rng.permutation(len(FIELDS) - 1) + 1  # "slope" is no pattern

    def layer(tone: float, kind: int) -> np.ndarray:
        depth = lerp(rng.random(), recipe.texture)
        light, dark = (
            random_color(rng, tone + depth / 2, 0.5),
            random_color(rng, tone - depth / 2, 0.5),
        )
        pattern = draw_field(rng, FIELDS[kind], size, scaled((0.13, 0.28), recipe))[..., None]
        colors: np.ndarray = dark + (light - dark) * pattern
        return colors

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        whole = fill(loops, size)
        return blend(image, layer(objects[number], others[number % len(others)]), whole), whole

    return Ground(layer(ground, first), ground, put)


def _sketch(rng: Generator, tones: Tones, recipe: Recipe, size: int) -> Ground:
    """Draw dark lines on light paper, twice with an unsteady hand; the inside is not filled."""
    u = rng.random(4)
    tone = 0.9 + 0.08 * u[0]
    paper = tone + 0.04 * (draw_field(rng, "clouds", size) - 0.5)
    blank = np.repeat(paper[..., None], 3, axis=2) - [0, 0, 0.06 * u[1]]
    ink = np.full(3, 0.06 + 0.2 * u[2])
    image = blank
    for _ in range(rng.integers(recipe.clutter[0], recipe.clutter[1] + 1)):
        v = rng.random((4, 2))
        dash = v[0] + 0.3 * recipe.detail * np.cumsum(v - 0.5, axis=0)
        image = blend(image, ink + 0.35, stroke([dash], 0.02 * recipe.detail, size))

    def put(image: np.ndarray, loops: Loops, number: int) -> tuple[np.ndarray, np.ndarray]:
        whole = fill(loops, size)
        if number:  # an object in front hides the lines of those behind it
            image = blend(image, blank, whole)
        for _ in range(2):
            lines = _unsteady(rng, loops, recipe.detail)
            image = blend(image, ink, stroke(lines, 0.035 * recipe.detail, size, closed=True))
        return image, whole

    return Ground(image, tone, put)


def _unsteady(rng: Generator, loops: Loops, detail: float) -> list[np.ndarray]:
    wobbly = []
    for loop in loops:
        ends = np.roll(loop, -1, axis=0)
        steps = np.arange(4)[None, :, None] / 4
        dense = (loop[:, None] + (ends - loop)[:, None] * steps).reshape(-1, 2)
        t = 2 * np.pi * np.arange(len(dense))[:, None] / len(dense)
        size, phase = rng.random((2, 3, 2))
        shake = sum(size[k] * np.sin((k + 2) * t + 6 * phase[k]) for k in range(3))
        wobbly.append(dense + 0.008 * detail * shake)
    return wobbly


RENDITIONS: tuple[Style, ...] = (_cartoon, _stitched, _pixelled)

STYLES: dict[str, Style] = {"photo": _photo, "stylized": _stylized, "sketch": _sketch}
