"""A report as one HTML file that opens offline: no network, images embedded, readable without
its script, which sorts and filters tables."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
from PIL import Image

from densevit.results.report.document import (
    Block,
    Code,
    Document,
    FigureBlock,
    Fold,
    Items,
    Paragraph,
)
from densevit.results.tables.table import DAGGER, MISSING, TextTable
from densevit.utils.escape import visible

TEMPLATES = Path(__file__).parent / "templates"
MOST_PIXELS = 1400  # width; figures are written for print, at 300 dpi
COLORS = 128  # palette size; a drawn figure uses few colors
PHOTO_QUALITY = 82
SCALE = 0.5  # CSS pixels per image pixel, to be sharp on high-density screens


def to_html(document: Document) -> str:
    """Return the page; the same document gives the same bytes."""
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
    environment.filters["css_pixels"] = lambda pixels: round(pixels * SCALE)
    template = environment.get_template("report.html.j2")
    return visible(template.render(document=document, missing=MISSING, dagger=DAGGER))


def embedded(png: Path, *, photo: bool = False) -> tuple[bytes, int, int]:
    """Return the bytes of a PNG at screen size, with its width and height in pixels.

    A drawing becomes a PNG with a small palette, a `photo` a JPEG.
    """
    with Image.open(png, formats=["PNG"]) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if "A" in image.getbands() else None)
    if flat.width > MOST_PIXELS:
        height = round(flat.height * MOST_PIXELS / flat.width)
        flat = flat.resize((MOST_PIXELS, height), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    if photo:
        flat.save(written, "JPEG", quality=PHOTO_QUALITY)
    else:
        # The faster methods merge light gray and white.
        few = flat.quantize(COLORS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(written, "PNG", compress_level=6)  # more takes ten times as long to save a tenth
    return written.getvalue(), flat.width, flat.height


_KINDS = {
    Paragraph: "paragraph", Items: "items", Code: "code", FigureBlock: "figure",
    TextTable: "table", Fold: "fold",
}  # fmt: skip


def _kind(block: Block) -> str:
    return _KINDS[type(block)]


def _data_uri(figure: FigureBlock) -> str:
    kind = "png" if figure.image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(figure.image).decode()}"
