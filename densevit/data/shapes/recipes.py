"""The drawing parameters of each split of the built-in data sets."""

from __future__ import annotations

from dataclasses import replace

from densevit.data.shapes.canvas import Recipe

# --- shapes: one object --------------------------------------------------------------------------

# Easy enough for a small model to learn in less than a minute: the object is large, light on dark
# and near the center. Each shifted set removes this in its own way.
_PLAIN = Recipe(
    style="photo",
    area=(0.19, 0.33),
    turn=10,
    spread=0.5,
    contrast=(0.5, 0.64),
    light=1.0,
    texture=(0.03, 0.1),
    clutter=(1, 3),
    noise=0.02,
)

ONE = {
    "train": _PLAIN,
    "val": _PLAIN,
    "shapes-a": replace(
        _PLAIN,
        area=(0.10, 0.20),
        turn=30,
        spread=0.9,
        overhang=0.05,
        contrast=(0.3, 0.5),
        light=0.9,
        texture=(0.08, 0.2),
        clutter=(4, 8),
        cover=(1, 3),
        noise=0.04,
    ),
    "shapes-r": replace(_PLAIN, style="rendition", contrast=(0.35, 0.6), light=0.7, noise=0.0),
    "shapes-v2": replace(
        _PLAIN,
        area=(0.17, 0.31),
        turn=14,
        spread=0.65,
        contrast=(0.45, 0.62),
        texture=(0.04, 0.12),
        clutter=(1, 4),
        noise=0.025,
    ),
    "shapes-stylized": replace(
        _PLAIN, style="stylized", contrast=(0.25, 0.45), light=0.85, texture=(0.2, 0.4)
    ),
    "shapes-sketch": replace(_PLAIN, style="sketch", area=(0.2, 0.34)),
}

# --- shapes-many: scenes of several objects ------------------------------------------------------

# Here `contrast` is the lightness difference between the ground and the object nearest to it. The
# objects are about a third of the side wide, 20 of 64 pixels, and reach over the border: two random
# crops then rarely show the same ones.
_SCENE = Recipe(
    style="photo",
    area=(0.07, 0.12),
    turn=15,
    overhang=0.12,
    detail=0.65,
    contrast=(0.28, 0.38),
    light=1.0,
    texture=(0.03, 0.1),
    clutter=(2, 5),
    soft=(0.0, 0.015),
    shadow=0.45,
    noise=0.02,
)

# The order is part of the drawing: a split's index seeds its random numbers.
MANY = {
    "train": _SCENE,
    "val": _SCENE,
    "shapes-many-a": replace(
        _SCENE,
        area=(0.05, 0.09),
        turn=30,
        contrast=(0.15, 0.25),
        light=0.9,
        texture=(0.08, 0.2),
        clutter=(6, 10),
        cover=(2, 4),
        shadow=0.15,
        noise=0.04,
    ),
    "shapes-many-r": replace(_SCENE, style="rendition", contrast=(0.25, 0.4), light=0.7, noise=0.0),
    "shapes-many-v2": replace(
        _SCENE,
        area=(0.065, 0.115),
        turn=20,
        contrast=(0.26, 0.38),
        texture=(0.04, 0.12),
        clutter=(3, 7),
        shadow=0.3,
        noise=0.025,
    ),
    "shapes-many-stylized": replace(
        _SCENE, style="stylized", contrast=(0.2, 0.35), light=0.85, texture=(0.2, 0.4)
    ),
    "shapes-many-sketch": replace(_SCENE, style="sketch"),
}
