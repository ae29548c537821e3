"""`densevit data`: check, prepare or draw data sets."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.cli.parser import positive
from densevit.config.evaluation_names import SHIFTED
from densevit.data.check_report import class_balance, compare, index_map
from densevit.data.image import root_of
from densevit.data.shapes.export import draw_folders
from densevit.utils.console import say
from densevit.utils.errors import EXIT_FAILED, UserError

if TYPE_CHECKING:
    from densevit.data.check_folders import Findings

_SPLITS = ("train", "val", *SHIFTED)


def add_data(commands: Any) -> None:
    """Add `data` and its subcommands to the commands of `densevit`."""
    data = commands.add_parser("data", help="check, prepare or draw data sets")
    parts = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_check(parts)
    _add_prepare(parts)
    _add_shapes(parts)


def _add_check(parts: Any) -> None:
    check = parts.add_parser(
        "check",
        help="look for damaged files, wrong class folders and shared images",
        description="Read every file of data sets and report problems (exit code 1 if there are "
        "any). Results are cached: unchanged files are not read again.",
    )
    check.set_defaults(call=_check)
    add = check.add_argument
    add("sets", nargs="+", metavar="NAME[=PATH]",
        help="a benchmark (imagenet-a=FOLDER), train, val, or another name for class folders, a "
        "tar file or a Hugging Face data set; without PATH: $DENSEVIT_DATA/NAME")  # fmt: skip
    add("--cache", metavar="DIR", help="the cache (default: in ~/.cache/densevit)")
    add("--jobs", type=positive, metavar="N", help="processes (default: the cores)")
    add(
        "--no-hash", action="store_true", help="read only both ends of files; finds no equal images"
    )
    add("--label-column", metavar="NAME", help="the labels of Hugging Face data sets with several")
    add("--unlabelled", action="store_true", help="the images have no labels and no class folders")
    add("--json", action="store_true", help="print one JSON object")


def _add_prepare(parts: Any) -> None:
    prepare = parts.add_parser(
        "prepare",
        help="unpack a benchmark's archives into class folders",
        description="Unpack archives into the class folders that a run reads. After an "
        "interruption the same command resumes. imagenet also needs the ground truth: "
        "LOC_val_solution.csv, the development kit or the synset labels.",
    )
    prepare.set_defaults(call=_prepare)
    prepare.add_argument("name", metavar="NAME", help="imagenet, imagenet-a, imagenet-v2, ...")
    prepare.add_argument("archives", nargs="+", metavar="ARCHIVE", help=".tar, .tar.gz or .zip")
    prepare.add_argument("--to", required=True, metavar="DIR", help="the folder to write to")


def _add_shapes(parts: Any) -> None:
    draw = parts.add_parser(
        "shapes",
        help="draw the built-in data set, also as image files",
        description="Draw the built-in data set, where runs look for it or as PNG files.",
    )
    draw.set_defaults(call=_shapes)
    draw.add_argument("--size", type=positive, default=32, help="pixels a side (%(default)s)")
    draw.add_argument("--to", metavar="DIR", help="default: where runs look for it")
    draw.add_argument(
        "--as", dest="form", choices=["arrays", "folders"], default="arrays",
        help="arrays, which runs read, or images/SPLIT/CLASS/N.png and masks/ (%(default)s)",
    )  # fmt: skip
    draw.add_argument("--split", action="append", choices=_SPLITS, help="once or more; else all")


def _check(options: argparse.Namespace) -> int:
    from densevit.data.check_folders import examine, listed

    places = _places(options.sets)
    cache = Path(options.cache).expanduser() if options.cache else None
    several = []
    column, loose = options.label_column, options.unlabelled
    for listing in [listed(n, path, column, unlabelled=loose) for n, path in places.items()]:
        several.append(examine(listing, not options.no_hash, options.jobs, cache))
        if not options.json:
            _say(*_lines(several[-1]))
    problems, notes = compare(several)
    notes += _misspelt(places)
    wrong = len(problems) + sum(len(each.problems) for each in several)
    if options.json:
        record = {"sets": [_record(e) for e in several], "problems": problems, "notes": notes}
        say(json.dumps(record, indent=1))
    else:
        _say(*_labeled(problems, notes), f"problems: {wrong}" if wrong else "no problems")
    return EXIT_FAILED if wrong else 0


def _places(given: Sequence[str]) -> dict[str, Path]:
    """Return the path of each set: NAME=PATH, or NAME for $DENSEVIT_DATA/NAME."""
    from densevit.data.open_benchmark import resolved

    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or (equals and not path):
            raise UserError(f"{text!r}: must be NAME=PATH, such as imagenet-a=FOLDER, or NAME")
        if name in found:
            raise UserError(f"{name}: is given twice")
        found[name] = _of_split(name, resolved(path or f"$DENSEVIT_DATA/{name}", name))
    return found


def _of_split(name: str, path: Path) -> Path:
    """Return the split in a folder that was given as `data_dir`: else its splits would be taken for
    classes."""
    from densevit.data.tar_files import tar_paths

    if name not in ("train", "val"):
        return path
    return next((each for each in (*tar_paths(path, name), path / name) if each.exists()), path)


def _misspelt(names: Iterable[str]) -> list[str]:
    """Return notes on names that are close to a known benchmark's name."""
    from densevit.data.known_benchmarks import LAYOUTS

    close = {name: difflib.get_close_matches(name, LAYOUTS, 1, 0.8) for name in names}
    note = "is no known benchmark, so its class folders are not checked; did you mean"
    return [f"{n} {note} {near[0]}?" for n, near in close.items() if near and n not in LAYOUTS]


def _lines(found: Findings) -> list[str]:
    """Return the findings of a set as lines of text."""
    listing, read = found.listing, found.reading
    images = listing.images
    known = " (files unchanged since they were read)" if read.cached else ""
    lines = [
        f"{listing.name}: {root_of(images)}",
        f"  {len(images):,} images, {len(images.classes):,} class folders{known}",
    ]
    if not listing.problems:
        lines.append(f"  outputs: {'; '.join(index_map(listing))}")
        few, many = (f"{count:,} ({name})" for name, count in class_balance(listing))
        lines.append(f"  images per class: {few} to {many}")
    if read.sizes:
        smallest, median, largest = (f"{width} x {height}" for width, height in read.sizes)
        lines.append(f"  pixels: smallest {smallest}, median {median}, largest {largest}")
    return [*lines, *(f"  {line}" for line in _labeled(found.problems, found.notes)), ""]


def _record(found: Findings) -> dict[str, Any]:
    listing, read = found.listing, found.reading
    few, many = class_balance(listing)
    return {
        "name": listing.name, "path": str(root_of(listing.images)), "images": len(listing.images),
        "expected_images": found.expected, "classes": len(listing.images.classes),
        "outputs": [] if listing.problems else index_map(listing),
        "smallest_class": few, "largest_class": many,
        "sizes": dict(zip(("smallest", "median", "largest"), read.sizes, strict=False)),
        "converted": [dict(zip(("how", "count", "first"), k, strict=True)) for k in read.kinds],
        "unreadable": dict(read.unreadable), "cached": read.cached,
        "problems": found.problems, "notes": found.notes,
    }  # fmt: skip


def _labeled(problems: Sequence[str], notes: Sequence[str]) -> list[str]:
    return [f"problem: {each}" for each in problems] + [f"note: {each}" for each in notes]


def _say(*lines: str) -> None:
    for line in lines:
        say(line)


def _prepare(options: argparse.Namespace) -> int:
    from densevit.data.image_files import some
    from densevit.data.prepare import prepare

    to = Path(options.to).expanduser().absolute()
    archives = [Path(each).expanduser().absolute() for each in options.archives]
    done = prepare(options.name, archives, to, say)
    left_out = f"; ignored: {some([*done.left_out])}" if done.left_out else ""
    say(f"{options.name}: {done.written:,} written, {done.there:,} existed, in {to}{left_out}")
    say(f"check every file: densevit data check {options.name}={to}")
    return 0


def _shapes(options: argparse.Namespace) -> int:
    from densevit.config.run_config import RunConfig
    from densevit.data.datasets import data_folder
    from densevit.data.shapes import dataset

    folder = Path(options.to).expanduser().absolute() if options.to else None
    if options.form == "folders" and folder is None:
        raise UserError("--as folders: also give a folder: --to DIR")
    folder = folder or data_folder(RunConfig(dataset="shapes"))
    for split in options.split or _SPLITS:
        try:
            if options.form == "folders":
                place = draw_folders(split, options.size, folder)
            else:
                images: Any = dataset.load(split, options.size, folder).images  # memory-mapped
                place = Path(images.filename).parent
        except ValueError as error:
            raise UserError(str(error)) from None
        say(f"{split}: {dataset.COUNTS[split]:,} images in {place}")
    return 0
