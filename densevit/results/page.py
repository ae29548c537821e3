"""A report as one HTML file that opens offline: no script, no network, images inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from densevit.results.document import SHOWN, Code, Document, Fold, Items, Paragraph, Picture
from densevit.results.sheet import DAGGER, MISSING, Sheet

TEMPLATES = Path(__file__).parent / "templates"
MOST_PIXELS = 1400  # wide; figures are written for print, at 300 dpi
COLOURS = 128  # of a drawn figure, which has few
PHOTO_QUALITY = 82
SCALE = 0.5  # CSS pixels a pixel of an image, so that it is sharp on dense screens


def to_html(document: Document) -> str:
    """The page. The same document gives the same bytes."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = _kind
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\u00a0%")
    environment.filters["data_uri"] = _data_uri
    environment.filters["shown_width"] = lambda picture: round(picture.width * SCALE)
    environment.filters["shown_height"] = lambda picture: round(picture.height * SCALE)
    template = environment.get_template("report.html.j2")
    return template.render(document=document, missing=MISSING, dagger=DAGGER).translate(SHOWN)


def embedded(png: Path, *, photo: bool = False) -> tuple[bytes, int, int]:
    """What a page holds of a PNG: the image at screen size, and its width and height in pixels.

    A drawing becomes a PNG of few colours, a `photo` a JPEG.
    """
    with Image.open(png) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if "A" in image.getbands() else None)
    if flat.width > MOST_PIXELS:
        height = round(flat.height * MOST_PIXELS / flat.width)
        flat = flat.resize((MOST_PIXELS, height), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    if photo:
        flat.save(written, "JPEG", quality=PHOTO_QUALITY)
    else:
        # The quicker ways make a light grey and white the same.
        few = flat.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(written, "PNG", compress_level=6)  # more takes ten times as long for a tenth
    return written.getvalue(), flat.width, flat.height


def size(image: Path) -> tuple[int, int]:
    """Width and height of an image file in pixels."""
    with Image.open(image) as opened:
        return opened.size


_KINDS = {
    Paragraph: "paragraph", Items: "items", Code: "code", Picture: "picture", Sheet: "sheet",
    Fold: "fold",
}  # fmt: skip


def _kind(block: Any) -> str:
    return _KINDS[type(block)]


def _data_uri(picture: Picture) -> str:
    kind = "png" if picture.image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture.image).decode()}"
