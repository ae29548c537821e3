"""Class names: the file that maps folders to classes, and what makes a set of classes unusable."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from densevit.data.image import Images, root_of
from densevit.data.image_files import some
from densevit.utils.errors import UserError

_WORD = re.compile(r'"([^"]*)"|(\S+)')


def check_several(images: Images, classes: Sequence[str], source: str) -> None:
    """Reject a set of one class, on which every accuracy is 100 %.

    Errors: `UserError` naming the subfolders that may be the classes.
    """
    if len(classes) > 1:
        return
    root = root_of(images)
    raise UserError(
        f"{source}: {root}: has only the class {classes[0]}, so that every accuracy would be "
        f"100 %{one_class_hint(images)}"
    )


def one_class_hint(images: Images) -> str:
    """Return which subfolders may be the classes that a set of one class lacks; "" if none."""
    inner = {each.split("/")[1]: None for each in images.ids if each.count("/") > 1}
    if not inner:
        return ""
    return (
        f"; if its subfolders ({some([*inner])}) are the classes, {images.classes[0]}/ is one "
        f"folder level too many: images must lie in CLASS/"
    )


def read_class_file(path: Path, source: str) -> dict[str, str]:
    """Read lines `FOLDER CLASS` that map class folders to the network's classes.

    Several folders may map to one class. A word that begins with `#` begins a comment; a name with
    a space or such a `#` is written in double quotes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{source}: classes: {path}: {reason}; must be folder, imagenet, or a file of lines "
            f"FOLDER CLASS"
        ) from None
    meaning: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = _words(line)
        if not words:
            continue
        if len(words) != 2 or words[0] in meaning:
            wrong = f"{words[0]} twice" if len(words) == 2 else f"{line.strip()!r}"
            raise UserError(
                f"{source}: classes: {path}:{number}: {wrong}; a line must be FOLDER CLASS, and a "
                f'name with spaces in quotes: "sea lion" seal'
            )
        meaning[words[0]] = words[1]
    return meaning


def _words(line: str) -> list[str]:
    words = []
    for found in _WORD.finditer(line):
        if found[0].startswith("#"):
            break
        words.append(found[2] if found[1] is None else found[1])
    return words
