"""`densevit show`: draw matches, similarities or attention of a run's network in an image."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.cli.parser import add_outputs, existing_run
from densevit.config.loss_kinds import LOSS_KINDS
from densevit.runs.directory import outputs_root
from densevit.utils.cache import use_writable_cache
from densevit.utils.console import say
from densevit.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from densevit.data.image import LazyImage
    from densevit.models.vit import DenseViT


def add_show(commands: Any) -> None:
    show = commands.add_parser(
        "show",
        help="draw what a run's network matches in an image",
        description="Draw matches, similarities or attention of a run's network as a PNG.",
    )
    kinds = show.add_subparsers(dest="kind", required=True, metavar="WHAT")
    matches = kinds.add_parser("matches", help="two views of an image and the patches that match")
    matches.set_defaults(call=_matches)
    _add_image(matches)
    _add_features(matches)
    matches.add_argument(
        "--most", type=int, default=24, metavar="N", help="lines drawn (default: 24)"
    )
    matches.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the two views (default: 0)"
    )
    similarity = kinds.add_parser("similarity", help="cosine similarity of one patch to all others")
    similarity.set_defaults(call=_similarity)
    _add_image(similarity)
    _add_features(similarity)
    similarity.add_argument("--patch", type=int, metavar="N", help="counted row by row "
                            "(default: the middle one)")  # fmt: skip
    attention = kinds.add_parser("attention", help="attention of each head")
    attention.set_defaults(call=_attention)
    _add_image(attention)
    attention.add_argument("--block", type=int, metavar="N", help="counted from 0 "
                           "(default: the last one)")  # fmt: skip


def _add_image(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its directory")
    parser.add_argument("image", metavar="IMAGE", help="an image file, or the number of one of "
                        "the run's val images")  # fmt: skip
    parser.add_argument("--to", metavar="FILE", help="default: WHAT-RUN-IMAGE.png in this folder")
    add_outputs(parser)


def _add_features(parser: Any) -> None:
    of_patches = [kind.name for kind in LOSS_KINDS if kind.tokens == "patches"]
    parser.add_argument("--features", choices=["backbone", *of_patches], default="backbone",
                        help="features to compare (default: backbone)")  # fmt: skip


def _open(options: argparse.Namespace) -> tuple[DenseViT, LazyImage, Path]:
    """Return the network, the image, and the path of the drawing."""
    outputs = outputs_root(options.outputs)
    use_writable_cache(outputs)
    folder = existing_run(options.run, outputs)
    name = Path(options.image).stem
    target = Path(options.to or f"{options.kind}-{folder.path.name}-{name}.png").absolute()
    _check_files(options.image, target)  # before the slow loading of the network
    from densevit.data.image_folder import read_file
    from densevit.models.load import load_model
    from densevit.models.vit import DenseViT

    model = load_model(options.run, folder, None).model
    if not isinstance(model, DenseViT):
        raise TypeError(f"{options.run}: the network of a run is a DenseViT")
    if not options.image.isdecimal():
        return model, read_file(options.image), target
    from densevit.data.datasets import open_data

    images, number = open_data(folder.config(), model.image_size).shown, int(options.image)
    if number >= len(images):
        raise UserError(
            f"{options.image}: val has {len(images)} images, from 0 to {len(images) - 1}"
        )
    return model, images.image(number), target


def _check_files(image: str, target: Path) -> None:
    """Check that the image can be read and the target written. Errors: `UserError`."""
    if not image.isdecimal() and not Path(image).is_file():
        fault = "is a folder" if Path(image).is_dir() else "no such file"
        raise UserError(
            f"{image}: {fault}; give an image file, or the number of one of the run's val images"
        )
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give a file to write: --to FILE")
    parent = next(each for each in target.parents if each.exists())
    if not parent.is_dir():
        raise UserError(f"{parent}: is a file, not a folder to write to")


def _matches(options: argparse.Namespace) -> int:
    if options.most < 1:
        raise UserError(f"--most: {options.most} must be at least 1")
    model, image, target = _open(options)
    from densevit.evaluate.correspondence import correspondences, views_of
    from densevit.results.figures.correspondence import draw_matches

    views = views_of(image, model.image_size, options.seed)
    found = correspondences(model, views, features=options.features)
    draw_matches(found, target, most=options.most)
    say(target)
    return 0


def _similarity(options: argparse.Namespace) -> int:
    model, image, target = _open(options)
    from densevit.evaluate.correspondence import patch_similarity
    from densevit.results.figures.attention import draw_similarity

    rows, columns = model.grid
    patch = rows // 2 * columns + columns // 2 if options.patch is None else options.patch
    if not 0 <= patch < rows * columns:
        raise UserError(f"--patch: {patch} must be from 0 to {rows * columns - 1}")
    pixels = _whole(image, model.image_size)
    draw_similarity(
        pixels, patch_similarity(model, pixels, patch, features=options.features), patch,
        target,
    )  # fmt: skip
    say(target)
    return 0


def _attention(options: argparse.Namespace) -> int:
    model, image, target = _open(options)
    from densevit.evaluate.attention import attention, depth
    from densevit.models.vit import has_class_token
    from densevit.results.figures.attention import draw_attention

    block = depth(model) - 1 if options.block is None else options.block
    pixels = _whole(image, model.image_size)
    token = has_class_token(model.backbone)
    whose = "attention of the CLS token" if token else "mean attention of all patches"
    title = f"{whose} to each patch, block {block}"
    draw_attention(pixels, attention(model, pixels, block), target, title=title)
    say(target)
    return 0


def _whole(image: LazyImage, size: int) -> NDArray[np.uint8]:
    """Return the whole image, resized to the network's input: (S, S, 3)."""
    import numpy as np

    return np.asarray(image.decode().resize((size, size), 3))  # 3: bicubic
