"""The drawing behind `densevit.data.shapes`: outlines, fields of texture, and four styles.

A picture is described in units of its own side, so that one random key draws the same scene at
every size. Every outline has area 1 before it is placed, so that no class covers more of a picture
than another: neither its colours nor how much of it is object tells the class.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

# An outline: closed loops of points (k, 2), x to the right and y down. The first is filled, the
# others are holes in it.
Loops = tuple[np.ndarray, ...]

Range = tuple[float, float]

_MARGIN = 0.02  # between object and border, as a part of the side


@dataclass(frozen=True)
class Recipe:
    """How the pictures of one split are drawn; a pair is a range that is drawn from evenly."""

    style: str  # a key of STYLES
    area: Range = (0.15, 0.30)  # of the object, as a part of the picture
    turn: float = 20.0  # degrees to either side
    spread: float = 1.0  # part of the room around the object that its place is drawn from
    overhang: float = 0.0  # part of the object's extent that may lie outside the picture
    contrast: Range = (0.30, 0.55)  # lightness between object and ground
    light: float = 0.5  # how often the object is the lighter of the two
    texture: Range = (0.05, 0.18)  # lightness within a surface
    clutter: tuple[int, int] = (2, 5)  # blobs and strokes behind the object
    cover: tuple[int, int] = (0, 0)  # blobs and strokes in front of it
    soft: Range = (0.0, 0.05)  # width of the object's edge
    noise: float = 0.03


def paint(rng: Generator, name: str, recipe: Recipe, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture of the named outline, uint8 (S, S, 3), and where it is visible, bool (S, S)."""
    loops = _place(rng, outline(name), recipe)
    picture, visible = STYLES[recipe.style](rng, loops, recipe, size)
    # Drawn last: its count depends on the size, and nothing that follows may.
    picture = picture + recipe.noise * (2 * rng.random((size, size, 3)) - 1)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), visible >= 0.5


@functools.cache
def outline(name: str) -> Loops:
    """The loops of a class, of area 1, the centre of their bounding box at the origin."""
    loops = [np.asarray(loop, dtype=np.float64) for loop in _OUTLINES[name]()]
    low, high = loops[0].min(axis=0), loops[0].max(axis=0)
    area = _area(loops[0]) - sum(_area(hole) for hole in loops[1:])
    return tuple((loop - (low + high) / 2) / np.sqrt(area) for loop in loops)


# --- outlines ------------------------------------------------------------------------------------


def _arc(start: float, stop: float, count: int) -> np.ndarray:
    angle = np.linspace(start, stop, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _disk() -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi, 73)[:-1]]


def _ring() -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi, 73)[:-1], 0.58 * _arc(0, 2 * np.pi, 73)[:-1]]


def _crescent() -> list[np.ndarray]:
    # The unit disk less a smaller one, moved aside; they meet at x = (1 - r^2 + d^2) / 2d.
    r, d = 0.82, 0.52
    x = (1 - r * r + d * d) / (2 * d)
    outer = np.arccos(x)
    inner = np.arctan2(np.sqrt(1 - x * x), x - d)
    back = _arc(2 * np.pi - inner, inner, 41)[1:-1] * r + [d, 0]
    return [np.concatenate([_arc(outer, 2 * np.pi - outer, 61), back])]


def _star() -> list[np.ndarray]:
    points = _arc(-np.pi / 2, 1.5 * np.pi, 11)[:-1]
    points[1::2] *= 0.42
    return [points]


def _heart() -> list[np.ndarray]:
    t = np.linspace(0, 2 * np.pi, 65)[:-1]
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([16 * np.sin(t) ** 3, -y], axis=1)]


def _polygon(*points: tuple[float, float]) -> Callable[[], list[np.ndarray]]:
    return lambda: [np.array(points, dtype=np.float64)]


def _mirrored(*half: tuple[float, float]) -> Callable[[], list[np.ndarray]]:
    """A polygon from its right half, from the top down."""
    return _polygon(*half, *((-x, y) for x, y in reversed(half)))


_OUTLINES: dict[str, Callable[[], list[np.ndarray]]] = {
    "disk": _disk,
    "square": _polygon((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": _polygon((0, -1), (1.1, 0.9), (-1.1, 0.9)),
    "star": _star,
    "cross": _mirrored((0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34), (0.34, 1)),
    "ring": _ring,
    "crescent": _crescent,
    "heart": _heart,
    "arrow": _mirrored((0.01, -1.1), (1, 0), (0.36, 0), (0.36, 1.1)),
    "hourglass": _mirrored((0.85, -1), (0.12, 0), (0.85, 1)),
}


def _area(loop: np.ndarray) -> float:
    x, y = loop[:, 0], loop[:, 1]
    return abs(float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))) / 2


def _place(rng: Generator, loops: Loops, recipe: Recipe) -> Loops:
    """The outline at a random scale, stretch, turn and place, in units of the picture's side."""
    area, stretch, turn, flip, *at = rng.random(6)
    side = np.sqrt(_between(area, recipe.area))
    stretch = _between(stretch, (0.88, 1.14))
    angle = np.deg2rad(recipe.turn) * (2 * turn - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.diag([side * stretch * (1 if flip < 0.5 else -1), side / stretch])
    matrix = matrix @ np.array([[cos, sin], [-sin, cos]])
    turned = [loop @ matrix for loop in loops]
    low, high = turned[0].min(axis=0), turned[0].max(axis=0)
    # The middle of the object goes to the middle of the picture, give or take the room around it.
    room = 1 - 2 * _MARGIN - (1 - 2 * recipe.overhang) * (high - low)
    shift = 0.5 - (low + high) / 2 + recipe.spread * (np.array(at) - 0.5) * np.maximum(room, 0)
    return tuple(loop + shift for loop in turned)


# --- coverage ------------------------------------------------------------------------------------


def _finer(size: int) -> int:
    return 4 if size <= 128 else 2


def _points(loop: np.ndarray, scale: int) -> list[tuple[int, int]]:
    # Whole numbers: a last bit that differs between platforms does not move an edge.
    return [(int(x), int(y)) for x, y in np.floor(loop * scale).tolist()]


def _reduced(canvas: Image.Image, size: int) -> np.ndarray:
    return np.asarray(canvas.reduce(canvas.width // size), dtype=np.float64) / 255


def _filled(loops: Sequence[np.ndarray], size: int, soft: float = 0.0) -> np.ndarray:
    """How much of each pixel the outline covers, (S, S) in [0, 1], its edge out of focus."""
    scale = size * _finer(size)
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for number, loop in enumerate(loops):
        pen.polygon(_points(loop, scale), fill=0 if number else 255)
    if soft:
        canvas = canvas.filter(ImageFilter.BoxBlur(soft * scale))
    return _reduced(canvas, size)


def _stroked(
    lines: Sequence[np.ndarray], width: float, size: int, closed: bool = False
) -> np.ndarray:
    """How much of each pixel strokes along the points cover, (S, S) in [0, 1]."""
    scale = size * _finer(size)
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for line in lines:
        points = _points(line, scale)
        if closed:  # two points more, so that the joint at the start is drawn as well
            points += points[:2]
        pen.line(points, fill=255, width=max(1, round(width * scale)), joint="curve")
    return _reduced(canvas, size)


def _mix(under: np.ndarray, over: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return under + (over - under) * cover[..., None]


# --- colours and texture -------------------------------------------------------------------------


def _between(u: float, bounds: Range) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * float(u)


def _colour(rng: Generator, lightness: float, strength: float = 0.35) -> np.ndarray:
    """A random hue, (3,), whose mean is near the given lightness."""
    hue = rng.random(3)
    return np.clip(lightness + strength * (hue - hue.mean()) * 2, 0, 1)


def _two_tones(rng: Generator, recipe: Recipe) -> tuple[float, float]:
    """The lightness of ground and object."""
    gap, middle, side = rng.random(3)
    gap = _between(gap, recipe.contrast)
    middle = _between(middle, (0.12 + gap / 2, 0.88 - gap / 2))
    sign = 0.5 if side < recipe.light else -0.5
    return middle - sign * gap, middle + sign * gap


@functools.lru_cache(maxsize=8)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size) + 0.5) / size
    return at[None, :], at[:, None]


def _field(rng: Generator, kind: str, size: int, period: Range = (0.14, 0.4)) -> np.ndarray:
    """A texture, (S, S) in [0, 1], of one of FIELDS; a period is a part of the side."""
    u = rng.random(4)
    x, y = _grid(size)
    angle = np.pi * u[0]
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    turns = 2 * np.pi / _between(u[1], period)
    if kind == "slope":
        low, high = along[[0, -1]][:, [0, -1]].min(), along[[0, -1]][:, [0, -1]].max()
        return (along - low) / (high - low)
    if kind == "stripes":
        return 0.5 + 0.5 * np.sin(turns * along + 6 * u[2])
    if kind == "checks":
        return 0.5 + 0.5 * np.sin(turns * along + 6 * u[2]) * np.sin(turns * across + 6 * u[3])
    if kind == "dots":
        bumps = np.sin(turns * along + 6 * u[2]) + np.sin(turns * across + 6 * u[3])
        return np.clip(0.6 * bumps, 0, 1)
    if kind == "waves":
        bent = along + 0.06 * np.sin(turns * across + 6 * u[3])
        return 0.5 + 0.5 * np.sin(turns * bent + 6 * u[2])
    cells = 4 + int(u[1] * 5)  # "clouds"
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    fine = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(fine, dtype=np.float64) / 255


FIELDS = ("slope", "stripes", "checks", "dots", "waves", "clouds")


def _surface(rng: Generator, tone: float, recipe: Recipe, size: int) -> np.ndarray:
    """A textured surface, (S, S, 3), whose lightness stays around `tone`."""
    depth = _between(rng.random(), recipe.texture)
    kind = FIELDS[rng.integers(len(FIELDS))]
    light, dark = _colour(rng, tone + depth / 2), _colour(rng, tone - depth / 2)
    return dark + (light - dark) * _field(rng, kind, size)[..., None]


def _scrap(rng: Generator, centre: np.ndarray, reach: float, size: int) -> np.ndarray:
    """The coverage, (S, S), of a crooked blob or stroke: something that is of no class."""
    blob = rng.random() < 0.5
    u = rng.random((12, 2))
    if blob:
        radius = reach * (0.45 + 0.55 * u[:, :1])
        angle = 2 * np.pi * (np.arange(12) + 0.6 * u[0, 1]) / 12
        squeeze = np.array([1.0, 0.35 + 0.3 * u[1, 1]])
        loop = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1) * squeeze
        turn = np.pi * u[2, 1]
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        return _filled([centre + loop @ spin], size)
    steps = reach * 1.6 * (2 * u[:4] - 1)
    return _stroked([centre + steps], 0.02 + 0.03 * u[4, 0], size)


def _littered(
    rng: Generator, picture: np.ndarray, tone: float, count: tuple[int, int], size: int
) -> np.ndarray:
    """The picture with scraps on it whose lightness is near `tone`."""
    for _ in range(rng.integers(count[0], count[1] + 1)):
        u = rng.random(4)
        cover = _scrap(rng, u[:2], 0.07 + 0.11 * u[2], size)
        picture = _mix(picture, _colour(rng, tone + 0.3 * (u[3] - 0.5)), cover)
    return picture


# --- styles --------------------------------------------------------------------------------------


def _photo(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    ground, object_ = _two_tones(rng, recipe)
    picture = _surface(rng, ground, recipe, size)
    picture = _littered(rng, picture, ground, recipe.clutter, size)
    # A long outline mixes more pixels of both colours than a short one, which a histogram shows:
    # how far the edge is in focus varies more than the lengths do.
    whole = _filled(loops, size, _between(rng.random(), recipe.soft))
    picture = _mix(picture, _surface(rng, object_, recipe, size), whole)
    visible = whole
    low, high = loops[0].min(axis=0), loops[0].max(axis=0)
    for _ in range(rng.integers(recipe.cover[0], recipe.cover[1] + 1)):
        u = rng.random(4)
        cover = _scrap(
            rng, low + (high - low) * u[:2], (0.2 + 0.2 * u[2]) * (high - low).max(), size
        )
        colour = _colour(rng, ground + 0.3 * (u[3] - 0.5))
        left = visible * (1 - cover)
        if left.sum() >= 0.6 * whole.sum():  # an object that is mostly hidden has no class to see
            visible, picture = left, _mix(picture, colour, cover)
    return picture, visible


def _rendition(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    return (_cartoon, _stitched, _pixelled)[rng.integers(3)](rng, loops, recipe, size)


def _cartoon(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Flat and strong colours inside of a thick dark line."""
    ground, object_ = _two_tones(rng, recipe)
    flat = np.broadcast_to(_colour(rng, ground, 0.6), (size, size, 3))
    picture = _littered(rng, flat, ground, recipe.clutter, size)
    whole = _filled(loops, size)
    picture = _mix(picture, _colour(rng, object_, 0.6), whole)
    line = _stroked(loops, 0.045, size, closed=True)
    return _mix(picture, np.full(3, 0.06), line), np.maximum(whole, line)


def _stitched(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embroidery: parallel threads of one colour, with a seam, on woven cloth."""
    ground, object_ = _two_tones(rng, recipe)
    cloth = _field(rng, "checks", size, (0.08, 0.12))[..., None]
    picture = _colour(rng, ground, 0.2) + 0.14 * (cloth - 0.5)
    picture = _littered(rng, picture, ground, recipe.clutter, size)
    whole = _filled(loops, size)
    thread = _colour(rng, object_, 0.6)
    lit = _field(rng, "stripes", size, (0.09, 0.13))[..., None]
    picture = _mix(picture, thread + 0.35 * (lit - 0.6), whole)
    seam = _stroked(loops, 0.03, size, closed=True)
    return _mix(picture, thread * 0.75, seam), np.maximum(whole, seam)


def _pixelled(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Large square dots of few colours; the mask follows the dots."""
    dots = 20
    ground, object_ = _two_tones(rng, recipe)
    flat = np.broadcast_to(_colour(rng, ground, 0.5), (dots, dots, 3))
    picture = _littered(rng, flat, ground, recipe.clutter, dots)
    inside = (_filled(loops, dots) >= 0.5).astype(np.float64)
    picture = _mix(picture, _colour(rng, object_, 0.5), inside)
    picture = np.round(picture * 5) / 5
    at = np.arange(size) * dots // size
    return picture[at][:, at], inside[at][:, at]


def _stylized(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Strong patterns everywhere: one over the ground, another one over the object."""
    ground, object_ = _two_tones(rng, recipe)
    first, second = rng.permutation(len(FIELDS) - 1)[:2] + 1  # "slope" is no pattern
    whole = _filled(loops, size)
    layers = []
    for tone, kind in ((ground, first), (object_, second)):
        depth = _between(rng.random(), recipe.texture)
        light, dark = _colour(rng, tone + depth / 2, 0.5), _colour(rng, tone - depth / 2, 0.5)
        field = _field(rng, FIELDS[kind], size, (0.13, 0.28))[..., None]
        layers.append(dark + (light - dark) * field)
    return _mix(layers[0], layers[1], whole), whole


def _sketch(
    rng: Generator, loops: Loops, recipe: Recipe, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dark lines on light paper, drawn twice by an unsteady hand; the inside is not filled."""
    u = rng.random(4)
    paper = 0.9 + 0.08 * u[0] + 0.04 * (_field(rng, "clouds", size) - 0.5)
    picture = np.repeat(paper[..., None], 3, axis=2) - [0, 0, 0.06 * u[1]]
    ink = np.full(3, 0.06 + 0.2 * u[2])
    for _ in range(rng.integers(recipe.clutter[0], recipe.clutter[1] + 1)):
        v = rng.random((4, 2))
        dash = v[0] + 0.3 * np.cumsum(v - 0.5, axis=0)
        picture = _mix(picture, ink + 0.35, _stroked([dash], 0.02, size))
    for _ in range(2):
        picture = _mix(picture, ink, _stroked(_unsteady(rng, loops), 0.035, size, closed=True))
    return picture, _filled(loops, size)


def _unsteady(rng: Generator, loops: Loops) -> list[np.ndarray]:
    wobbly = []
    for loop in loops:
        ends = np.roll(loop, -1, axis=0)
        steps = np.arange(4)[None, :, None] / 4
        dense = (loop[:, None] + (ends - loop)[:, None] * steps).reshape(-1, 2)
        t = 2 * np.pi * np.arange(len(dense))[:, None] / len(dense)
        size, phase = rng.random((2, 3, 2))
        shake = sum(size[k] * np.sin((k + 2) * t + 6 * phase[k]) for k in range(3))
        wobbly.append(dense + 0.008 * shake)
    return wobbly


Style = Callable[[Generator, Loops, Recipe, int], tuple[np.ndarray, np.ndarray]]

STYLES: dict[str, Style] = {
    "photo": _photo,
    "rendition": _rendition,
    "stylized": _stylized,
    "sketch": _sketch,
}
