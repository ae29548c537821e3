"""`densevit show`: what a run's network sees in a picture, drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.commandline import add_outputs, existing_run
from densevit.errors import UserError
from densevit.rundir import outputs_root

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from densevit.data.pictures import Picture
    from densevit.named import Named


def add_show(commands: Any) -> None:
    show = commands.add_parser(
        "show",
        help="draw what a run's network matches in a picture",
        description="Draw what a run's network sees in a picture, as a PNG.",
    )
    kinds = show.add_subparsers(dest="kind", required=True, metavar="WHAT")
    matches = kinds.add_parser("matches", help="two views of a picture, and which patches match")
    matches.set_defaults(call=_matches)
    _add_picture(matches)
    _add_features(matches)
    matches.add_argument("--most", type=int, default=24, metavar="N", help="lines (default: 24)")
    matches.add_argument("--seed", type=int, default=0, metavar="N", help="of the two views")
    similarity = kinds.add_parser("similarity", help="how similar one patch is to all others")
    similarity.set_defaults(call=_similarity)
    _add_picture(similarity)
    _add_features(similarity)
    similarity.add_argument("--patch", type=int, metavar="N", help="counted row by row (default: "
                            "the middle one)")  # fmt: skip
    attention = kinds.add_parser("attention", help="what each head attends to")
    attention.set_defaults(call=_attention)
    _add_picture(attention)
    attention.add_argument("--block", type=int, metavar="N", help="counted from 0 (default: the "
                           "last one)")  # fmt: skip


def _add_picture(parser: Any) -> None:
    parser.add_argument("run", metavar="RUN", help="the id of a run, or its directory")
    parser.add_argument("image", metavar="IMAGE", help="a picture's file, or the number of one of "
                        "the run's val pictures")  # fmt: skip
    parser.add_argument("--to", metavar="FILE", help="default: WHAT-RUN-IMAGE.png in this folder")
    add_outputs(parser)


def _add_features(parser: Any) -> None:
    parser.add_argument("--features", choices=["backbone", "dense"], default="backbone",
                        help="what is compared (default: backbone)")  # fmt: skip


def _opened(options: argparse.Namespace) -> tuple[Named, Any, Path]:
    """The network, the picture, and where the drawing goes."""
    folder = existing_run(options.run, outputs_root(options.outputs))
    name = Path(options.image).stem
    target = Path(options.to or f"{options.kind}-{folder.path.name}-{name}.png").absolute()
    _check_files(options.image, target)  # before a network is loaded
    from densevit.data.folders import read_file
    from densevit.named import open_named

    named = open_named(options.run, folder, None)
    if not options.image.isdecimal():
        return named, read_file(options.image), target
    from densevit.data.sources import open_data

    val, number = open_data(folder.config(), named.image_size).val, int(options.image)
    if number >= len(val):
        raise UserError(f"{options.image}: val has {len(val)} pictures, from 0 on")
    return named, val.picture(number), target


def _check_files(image: str, target: Path) -> None:
    """Errors: `UserError` for a picture that is no file, and where none can be written."""
    if not image.isdecimal() and not Path(image).is_file():
        told = "is a folder" if Path(image).is_dir() else "no such file"
        raise UserError(
            f"{image}: {told} (wanted a picture's file, or the number of one of the run's val)"
        )
    if target.is_dir():
        raise UserError(f"{target}: is a folder (wanted a file to write: --to FILE)")
    above = next(each for each in target.parents if each.exists())
    if not above.is_dir():
        raise UserError(f"{above}: is a file and no folder to write to")


def _matches(options: argparse.Namespace) -> int:
    if options.most < 1:
        raise UserError(f"--most: {options.most} must be at least 1")
    named, picture, target = _opened(options)
    from densevit.correspond import correspondences, views_of
    from densevit.results.matches import draw_matches

    views = views_of(picture, named.image_size, options.seed)
    found = correspondences(named.model, views, features=options.features)
    draw_matches(found, target, most=options.most)
    print(target)
    return 0


def _similarity(options: argparse.Namespace) -> int:
    named, picture, target = _opened(options)
    from densevit.correspond import patch_similarity
    from densevit.results.matches import draw_similarity

    rows, columns = named.model.grid
    patch = rows // 2 * columns + columns // 2 if options.patch is None else options.patch
    if not 0 <= patch < rows * columns:
        raise UserError(f"--patch: {patch} must be from 0 to {rows * columns - 1}")
    pixels = _whole(named, picture)
    draw_similarity(
        pixels, patch_similarity(named.model, pixels, patch, features=options.features), patch,
        target,
    )  # fmt: skip
    print(target)
    return 0


def _attention(options: argparse.Namespace) -> int:
    named, picture, target = _opened(options)
    from densevit.correspond import attention, depth
    from densevit.model import has_class_token
    from densevit.results.matches import draw_attention

    block = depth(named.model) - 1 if options.block is None else options.block
    pixels = _whole(named, picture)
    token = has_class_token(named.model.backbone)
    whose = "attention of the CLS token" if token else "mean attention of all patches"
    words = f"{whose} to each patch, block {block}"
    draw_attention(pixels, attention(named.model, pixels, block), target, words=words)
    print(target)
    return 0


def _whole(named: Named, picture: Picture) -> NDArray[np.uint8]:
    """All of a picture, squeezed to what the network takes: (S, S, 3)."""
    import numpy as np

    size = (named.image_size, named.image_size)
    return np.asarray(picture.decode().resize(size, 3))  # 3: bicubic
