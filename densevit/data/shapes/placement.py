"""Place outlines in the image: scale, stretch, rotate and shift them at random.

Lengths are fractions of the image's side. Every outline has area 1 before it is placed, so that the
object's area does not depend on the class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from densevit.data.shapes.canvas import MARGIN, Recipe, lerp
from densevit.data.shapes.outlines import Loops, outline


@dataclass(frozen=True)
class Placed:
    """An object: a point p of the class's outline lies at p @ matrix + shift in the image.

    The unit is the image's side; matrix is (2, 2) and shift (2,), x to the right and y down.
    """

    name: str
    matrix: np.ndarray
    shift: np.ndarray

    @property
    def area(self) -> float:
        """The area of the whole object, as a fraction of the image."""
        return abs(float(np.linalg.det(self.matrix)))

    def loops(self) -> Loops:
        return tuple(loop @ self.matrix + self.shift for loop in outline(self.name))


def place_one(rng: Generator, name: str, recipe: Recipe) -> Placed:
    """Place one outline at random."""
    u = rng.random(6)
    matrix = form(u[:4], recipe)
    return Placed(name, matrix, position(u[4:], name, matrix, recipe))


def form(u: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the matrix, (2, 2), of four numbers in [0, 1): area, stretch, turn and flip."""
    area, stretch, turn, flip = u
    side = np.sqrt(lerp(area, recipe.area))
    stretch = lerp(stretch, (0.88, 1.14))
    angle = np.deg2rad(recipe.turn) * (2 * turn - 1)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.diag([side * stretch * (1 if flip < 0.5 else -1), side / stretch])
    turned: np.ndarray = matrix @ np.array([[cos, sin], [-sin, cos]])
    return turned


def position(u: np.ndarray, name: str, matrix: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Return the shift, (2,), of two numbers in [0, 1): across and down."""
    turned = outline(name)[0] @ matrix
    low, high = turned.min(axis=0), turned.max(axis=0)
    # The object is centered in the image, plus a random part of the room around it.
    room = 1 - 2 * MARGIN - (1 - 2 * recipe.overhang) * (high - low)
    shift: np.ndarray = 0.5 - (low + high) / 2 + recipe.spread * (u - 0.5) * np.maximum(room, 0)
    return shift
