"""What a timm model's name tells without importing timm, so that a plan can be checked at once.

timm itself is asked before anything is launched (`model.check_model`); this is the early word.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from densevit.config import RunConfig
from densevit.errors import UserError, nearest


def check_names(config: RunConfig, source: Callable[[str], str]) -> None:
    """Refuse a model name that timm does not have and a size that its patch does not divide.

    Errors: `UserError` that begins with `source(key)`, the place that gave the key its value.
    """
    names = _registered()
    name = config.model_name.split(".")[0]
    if names and name not in names:
        hint = nearest(name, {n for n in names if "vit" in n})
        told = f"model_name: timm has no model {config.model_name!r}; {hint}"
        raise UserError(f"{source('model_name')}: {told}")
    size, patch = image_size(config), patch_size(config)
    if size and patch and size % patch:
        raise UserError(
            f"{source('model_kwargs')}: model_kwargs: img_size {size} is not divisible by the "
            f"patch size {patch}"
        )


def image_size(config: RunConfig) -> int | None:
    """Side of the model's input in pixels, from `model_kwargs` or the name; None if neither."""
    given = config.model_kwargs.get("img_size")
    if given is None:
        found = re.search(r"_(\d{2,4})$", config.model_name.split(".")[0])
        given = int(found[1]) if found else None
    return given if isinstance(given, int) else None


def patch_size(config: RunConfig) -> int | None:
    """Side of a patch in pixels, from `model_kwargs` or the name; None if neither."""
    given = config.model_kwargs.get("patch_size")
    if given is None:
        found = re.search(r"_patch(\d+)", config.model_name)
        given = int(found[1]) if found else None
    return given if isinstance(given, int) and given > 0 else None


@cache
def _registered() -> frozenset[str]:
    """The names that timm registers, read from its sources; empty where timm is not installed.

    Importing timm would import torch: seconds, for a list of names.
    """
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            names.update(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
    return frozenset(names)
