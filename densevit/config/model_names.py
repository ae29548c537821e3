"""Check a timm model's name and sizes without importing timm, so that a plan is checked at once.

timm itself checks the model before a launch (`models.backbone`); this check comes earlier.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from densevit.config.loss_modes import applies
from densevit.config.model_kwargs import check_model_kwargs
from densevit.config.run_config import RunConfig
from densevit.utils.errors import UserError, nearest

PATCH_COUNTS = ("sampled_patches", "query_patches")

HUB = "hf-hub:"  # a model on the Hugging Face Hub


def check_names(config: RunConfig, source: Callable[[str], str]) -> None:
    """Reject a model name that timm does not have, arguments that a model may not be given, an
    image size that its patch does not divide, and more patches than an image has.

    Errors: `UserError` that begins with `source(key)`, the place that set the key.
    """
    names = _registered()
    name = architecture(config.model_name)
    check_place(config.model_name, f"{source('model_name')}: model_name")
    if names and name not in names and not config.model_name.startswith(HUB):
        hint = nearest(name, {n for n in names if "vit" in n})
        raise UserError(
            f"{source('model_name')}: model_name: timm has no model {config.model_name!r}; {hint}"
        )
    check_model_kwargs(config.model_kwargs, config.model_name, f"{source('model_kwargs')}: ")
    size, patch = image_size(config), patch_size(config)
    if size and patch and size % patch:
        raise UserError(
            f"{source('model_kwargs')}: model_kwargs: img_size {size} is not divisible by the "
            f"patch size {patch}"
        )
    if not (size and patch):
        return
    for key in PATCH_COUNTS:
        value = getattr(config, key)
        if applies(key, config) and value != "all" and value > (size // patch) ** 2:
            raise UserError(
                f"{source(key)}: {key}: {value} is more than the {(size // patch) ** 2} patches of "
                f"an image: {size // patch} x {size // patch}; give at most {(size // patch) ** 2}"
            )


def architecture(name: str) -> str:
    """Return the architecture in a timm name, without its tag: of `hf-hub:timm/NAME`, too.

    The names of other repositories say nothing: "" for them.
    """
    if not name.startswith(HUB):
        return name.split(".")[0]
    owner, _, repository = name.removeprefix(HUB).partition("/")
    return repository.split("@")[0].split(".")[0] if owner == "timm" else ""


def check_place(name: str, source: str) -> None:
    """Reject a model from anywhere but timm's list or the Hub; timm would also open folders.

    Errors: `UserError` that begins with `source`.
    """
    if re.fullmatch(HUB + r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name):
        return
    if name.startswith(HUB):
        raise UserError(f"{source}: {name}: must be {HUB}OWNER/NAME, with @REVISION if you like")
    if ":" in name or "/" in name:
        raise UserError(f"{source}: {name}: must be a model of timm's, or {HUB}OWNER/NAME")


def image_size(config: RunConfig) -> int | None:
    """Return the side of the model's input in pixels, by `model_kwargs` or the name, else None."""
    given = config.model_kwargs.get("img_size")
    if given is None:
        found = re.search(r"_(\d{2,4})$", architecture(config.model_name))
        given = int(found[1]) if found else None
    return given if isinstance(given, int) else None


def patch_size(config: RunConfig) -> int | None:
    """Return the side of a patch in pixels, from `model_kwargs` or the name, else None."""
    given = config.model_kwargs.get("patch_size")
    if given is None:
        found = re.search(r"_patch(\d+)", architecture(config.model_name))
        given = int(found[1]) if found else None
    return given if isinstance(given, int) and given > 0 else None


@cache
def _registered() -> frozenset[str]:
    """Return the names that timm registers, read from its sources; empty if timm is not installed.

    Importing timm would import torch: seconds, for a list of names.
    """
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in Path(folder, "models").glob("*.py"):
            text = file.read_text(encoding="utf-8")
            names.update(re.findall(r"^@register_model\s+def (\w+)\(", text, re.MULTILINE))
    return frozenset(names)
