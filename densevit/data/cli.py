"""The commands `densevit data check`, `prepare` and `shapes`: parse, call, print."""

from __future__ import annotations

import argparse
import colorsys
import difflib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevit.commandline import positive
from densevit.data.names import SHIFTED
from densevit.errors import EXIT_FAILED, UserError

if TYPE_CHECKING:
    from densevit.data.doctor import Findings, Listing

_SPLITS = ("train", "val", *SHIFTED)


def add_data(commands: Any) -> None:
    """Add `data` and its commands to those of `densevit`."""
    data = commands.add_parser("data", help="check, prepare or draw data sets")
    parts = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_check(parts)
    _add_prepare(parts)
    _add_shapes(parts)


def _add_check(parts: Any) -> None:
    check = parts.add_parser(
        "check",
        help="look for damaged files, wrong class folders and shared pictures",
        description="Read every file of data sets and tell what is wrong (exit code 1 if anything "
        "is). What files told is kept: unchanged ones are not read again.",
    )
    check.set_defaults(call=_check)
    add = check.add_argument
    add("sets", nargs="+", metavar="NAME[=PATH]",
        help="a benchmark (imagenet-a=FOLDER), train, val, or another name for class folders, a "
        "tar file or a Hugging Face data set; without PATH: $DENSEVIT_DATA/NAME")  # fmt: skip
    add("--cache", metavar="DIR", help="where checks are kept (default: in ~/.cache/densevit)")
    add("--jobs", type=positive, metavar="N", help="processes (default: the cores)")
    add("--no-hash", action="store_true", help="read a file's ends only; find no equal pictures")
    add("--json", action="store_true", help="print one JSON object")


def _add_prepare(parts: Any) -> None:
    prepare = parts.add_parser(
        "prepare",
        help="unpack a benchmark's archives into class folders",
        description="Unpack archives into the class folders that a run reads; interrupted, the "
        "same command carries on. To imagenet belongs the ground truth: LOC_val_solution.csv, the "
        "development kit or the synset labels.",
    )
    prepare.set_defaults(call=_prepare)
    prepare.add_argument("name", metavar="NAME", help="imagenet, imagenet-a, imagenet-v2, ...")
    prepare.add_argument("archives", nargs="+", metavar="ARCHIVE", help=".tar, .tar.gz or .zip")
    prepare.add_argument("--to", required=True, metavar="DIR", help="the folder to write to")


def _add_shapes(parts: Any) -> None:
    draw = parts.add_parser(
        "shapes",
        help="draw the embedded data set, also as files to look at",
        description="Draw the embedded data set, where runs look for it or as PNG files.",
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
    from densevit.data.doctor import examine, listed

    places = _places(options.sets)
    cache = Path(options.cache).expanduser() if options.cache else None
    several = []
    for listing in [listed(name, path) for name, path in places.items()]:
        several.append(examine(listing, not options.no_hash, options.jobs, cache))
        if not options.json:
            _say(*_lines(several[-1]))
    problems, notes = compare(several)
    notes += _misspelt(places)
    wrong = len(problems) + sum(len(each.problems) for each in several)
    if options.json:
        record = {"sets": [_record(e) for e in several], "problems": problems, "notes": notes}
        print(json.dumps(record, indent=1))
    else:
        _say(*_told(problems, notes), f"problems: {wrong}" if wrong else "nothing is wrong")
    return EXIT_FAILED if wrong else 0


def compare(several: Sequence[Findings]) -> tuple[list[str], list[str]]:
    """Problems and notes of sets held side by side.

    Problems: class folders of val that are not those of train, and pictures of train in another
    set, by their contents where these were hashed. A note: pictures that two test sets share.
    """
    from densevit.data.folders import some
    from densevit.data.layouts import difference

    problems, notes = [], []
    sets = {each.listing.name: each for each in several}
    if "train" in sets and "val" in sets:
        classes = [sets[name].listing.images.classes for name in ("val", "train")]
        told = difference(*classes)
        problems += [f"val: its class folders are not those of train: {told}"] if told else []
    for names in combinations(sets, 2):
        one, other = (sets[name] for name in names)
        first = dict(one.reading.contents(one.listing.images.ids))
        shared = [
            f"{first[digest]} = {each}"
            for digest, each in other.reading.contents(other.listing.images.ids)
            if digest in first
        ]
        if shared:
            told = f"{names[0]} and {names[1]} share {len(shared):,} pictures: {some(shared)}"
            (problems if "train" in names else notes).append(told)
    return problems, notes


def _places(given: Sequence[str]) -> dict[str, Path]:
    """The path of each set: NAME=PATH, or NAME for $DENSEVIT_DATA/NAME."""
    from densevit.data.benchmarks import resolved

    found: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not name or (equals and not path):
            raise UserError(f"{text!r}: wanted NAME=PATH, as imagenet-a=FOLDER, or NAME")
        if name in found:
            raise UserError(f"{name}: is given twice")
        found[name] = resolved(path or f"$DENSEVIT_DATA/{name}", name)
    return found


def _misspelt(names: Iterable[str]) -> list[str]:
    """Notes of names that are nearly those of benchmarks."""
    from densevit.data.benchmarks import LAYOUTS

    close = {name: difflib.get_close_matches(name, LAYOUTS, 1, 0.8) for name in names}
    told = "is no known benchmark, of which class folders are expected; did you mean"
    return [f"{n} {told} {near[0]}?" for n, near in close.items() if near and n not in LAYOUTS]


def _lines(found: Findings) -> list[str]:
    """A set in words."""
    listing, read = found.listing, found.reading
    images = listing.images
    known = " (files unchanged since they were read)" if read.cached else ""
    lines = [
        f"{listing.name}: {images.root}",
        f"  {len(images):,} pictures, {len(images.classes):,} class folders{known}",
    ]
    if not listing.problems:
        lines.append(f"  outputs: {'; '.join(index_map(listing))}")
        few, many = (f"{count:,} ({name})" for name, count in _balance(listing))
        lines.append(f"  pictures a class: {few} to {many}")
    if read.sizes:
        smallest, median, largest = (f"{width} x {height}" for width, height in read.sizes)
        lines.append(f"  pixels: smallest {smallest}, median {median}, largest {largest}")
    return [*lines, *(f"  {line}" for line in _told(found.problems, found.notes)), ""]


def _record(found: Findings) -> dict[str, Any]:
    listing, read = found.listing, found.reading
    few, many = _balance(listing)
    return {
        "name": listing.name, "path": str(listing.images.root), "images": len(listing.images),
        "expected_images": found.expected, "classes": len(listing.images.classes),
        "outputs": [] if listing.problems else index_map(listing),
        "smallest_class": few, "largest_class": many,
        "sizes": dict(zip(("smallest", "median", "largest"), read.sizes, strict=False)),
        "converted": [dict(zip(("how", "count", "first"), k, strict=True)) for k in read.kinds],
        "unreadable": dict(read.unreadable), "cached": read.cached,
        "problems": found.problems, "notes": found.notes,
    }  # fmt: skip


def index_map(listing: Listing) -> list[str]:
    """Which of a network's outputs the first and the last class folder are, in words."""
    from densevit.data import imagenet
    from densevit.data.benchmarks import LAYOUTS

    layout, classes = LAYOUTS.get(listing.name), list(listing.images.classes)
    wnids = imagenet.wnids()
    if layout and all(each.isdigit() for each in classes):
        classes.sort(key=int)
    told = []
    for place in dict.fromkeys((0, len(classes) - 1)):
        folder = classes[place]
        members = imagenet.category_members().get(folder, ()) if layout else ()
        if layout and not members:
            members = (folder if folder in wnids else wnids[int(folder)],)
        places = " ".join(str(wnids.index(each)) for each in members) or str(place)
        named = f" ({members[0]})" if members and folder.isdigit() else ""
        told.append(f"{folder} is {places}{' of ImageNet' if layout else ''}{named}")
    return told


def _balance(listing: Listing) -> tuple[tuple[str, int], tuple[str, int]]:
    """The smallest and the largest class, each with its number of pictures."""
    counts = Counter(listing.images.labels)
    pairs = [(name, counts[label]) for label, name in enumerate(listing.images.classes)]
    pairs.sort(key=lambda pair: (pair[1], pair[0]))
    return (pairs[0], pairs[-1]) if pairs else (("", 0), ("", 0))


def _told(problems: Sequence[str], notes: Sequence[str]) -> list[str]:
    return [f"problem: {each}" for each in problems] + [f"note: {each}" for each in notes]


def _say(*lines: str) -> None:
    for line in lines:  # a file's name need not be text
        print(line.encode("utf-8", "backslashreplace").decode(), flush=True)


def _prepare(options: argparse.Namespace) -> int:
    from densevit.data.folders import some
    from densevit.data.prepare import prepare

    to = Path(options.to).expanduser().absolute()
    archives = [Path(each).expanduser().absolute() for each in options.archives]
    done = prepare(options.name, archives, to, lambda line: print(line, flush=True))
    left_out = f"; left out: {some([*done.left_out])}" if done.left_out else ""
    print(f"{options.name}: {done.written:,} written, {done.there:,} were there, in {to}{left_out}")
    print(f"to read every file once: densevit data check {options.name}={to}")
    return 0


def _shapes(options: argparse.Namespace) -> int:
    from densevit.config import RunConfig
    from densevit.data import shapes
    from densevit.data.sources import data_folder

    folder = Path(options.to).expanduser().absolute() if options.to else None
    if options.form == "folders" and folder is None:
        raise UserError("--as folders: give a folder, too: --to DIR")
    folder = folder or data_folder(RunConfig(dataset="shapes"))
    for split in options.split or _SPLITS:
        try:
            if options.form == "folders":
                place = draw_folders(split, options.size, folder)
            else:
                images: Any = shapes.load(split, options.size, folder).images  # memory-mapped
                place = Path(images.filename).parent
        except ValueError as error:
            raise UserError(str(error)) from None
        print(f"{split}: {shapes.COUNTS[split]:,} pictures in {place}", flush=True)
    return 0


def draw_folders(split: str, size: int, to: Path) -> Path:
    """Draw a split of the embedded set as `to/images/SPLIT/CLASS/N.png`, and the masks likewise:
    palette pictures, 0 beside the object and the class's label + 1 on it. Returns the former.

    What is there is left as it is. Errors: `ValueError` for a size that cannot be drawn, or if
    pictures of another size or other files are there.
    """
    from PIL import Image

    from densevit.data import shapes

    done = to / "images" / split
    if _is_drawn(done, size):
        return done
    shapes.draw(split, 0, size)  # refuses a size before a folder is made
    hues = [colorsys.hsv_to_rgb(k / len(shapes.CLASSES), 1, 1) for k in range(len(shapes.CLASSES))]
    palette = [0, 0, 0, *(round(255 * part) for hue in hues for part in hue)]
    parts = {kind: to / kind / f".{split}.part" for kind in ("masks", "images")}
    for folder in parts.values():
        shutil.rmtree(folder, ignore_errors=True)
        for name in shapes.CLASSES:
            (folder / name).mkdir(parents=True)
    for index in range(shapes.COUNTS[split]):
        drawn = shapes.draw(split, index, size)
        file = Path(shapes.CLASSES[drawn.label]) / f"{index:05}.png"
        Image.fromarray(drawn.image).save(parts["images"] / file)
        mask = Image.fromarray(drawn.mask)
        mask.putpalette(palette)
        mask.save(parts["masks"] / file)
    for kind, folder in parts.items():  # the pictures last: with them the split is there
        shutil.rmtree(to / kind / split, ignore_errors=True)
        folder.rename(to / kind / split)
    return done


def _is_drawn(folder: Path, size: int) -> bool:
    """Whether the pictures are there, and not an empty folder. Errors: as of `draw_folders`."""
    from PIL import Image

    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    first = next(folder.rglob("*.png"), None)
    if first is None:
        raise ValueError(f"{folder}: holds other files than drawn pictures; give another folder")
    with Image.open(first) as there:
        if there.size != (size, size):
            raise ValueError(f"{folder}: holds pictures of {there.width} pixels a side")
    return True
