"""The outlines of the ten classes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

CLASSES = (
    "disk",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "heart",
    "arrow",
    "hourglass",
)

# An outline: closed loops of points (k, 2), x to the right and y down. The first is filled, the
# others are holes in it.
Loops = tuple[np.ndarray, ...]


@functools.cache
def outline(name: str) -> Loops:
    """Return the loops of a class, of area 1, their bounding box centered at the origin."""
    loops = [np.asarray(loop, dtype=np.float64) for loop in _OUTLINES[name]()]
    low, high = loops[0].min(axis=0), loops[0].max(axis=0)
    area = _area(loops[0]) - sum(_area(hole) for hole in loops[1:])
    return tuple((loop - (low + high) / 2) / np.sqrt(area) for loop in loops)


def _arc(start: float, stop: float, count: int) -> np.ndarray:
    angle = np.linspace(start, stop, count)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _disk() -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi, 73)[:-1]]


def _ring() -> list[np.ndarray]:
    return [_arc(0, 2 * np.pi, 73)[:-1], 0.58 * _arc(0, 2 * np.pi, 73)[:-1]]


def _crescent() -> list[np.ndarray]:
    # The unit disk minus a smaller, shifted one; they meet at x = (1 - r^2 + d^2) / 2d.
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
    """Return a polygon from its right half, given from top to bottom."""
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
