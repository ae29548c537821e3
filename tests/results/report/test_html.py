"""The page as a browser and a screen reader read it, checked with a parser."""

import io
import re
import shutil
import subprocess

import pytest
from PIL import Image
from webpage import check

from densevit.results.report import html
from densevit.results.report.document import (
    Code,
    Document,
    FigureBlock,
    Fold,
    Items,
    Paragraph,
    Section,
    to_markdown,
)
from densevit.results.tables.table import TextTable


def figure(width=700, height=300):
    written = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(written, "PNG")
    return FigureBlock("a.png", written.getvalue(), width, height, "a figure of it", "What is shown", "a.pdf")  # fmt: skip


NASTY = "<script>alert(1)</script> & \"q\" 'p' {{ 1 }} 100 %"


def document(nasty="plain"):
    table = TextTable(
        f"Numbers {nasty}", ["cell", "val", nasty],
        [[nasty, "1.0 ± 0.1", "missing"], ["b", "2.0", "3.0"]], "A note.", 1,
        {(0, 1): "best", (1, 2): "tied"},
    )  # fmt: skip
    blocks = [
        Paragraph(nasty), Items([nasty, "two"]), Code([nasty, "  indented"]), figure(), table,
        Fold(nasty, "note", [Paragraph("inside"), Code(["x" * 300])], open=True),
    ]  # fmt: skip
    long = Section(
        "long", "Long", [TextTable("Wide", ["a"] * 30, [["0123456789"] * 30])], brief=False
    )
    return Document(f"sweep {nasty}", [nasty], [Section("answer", "Answer", blocks), long])


def test_every_block_is_on_the_page():
    read = check(html.to_html(document()))
    assert read.all("h1")[0]["text"] == "sweep plain"
    assert [h["text"] for h in read.all("h2")] == ["Answer", "Long"]
    assert [e["text"] for e in read.all("strong")] == ["1.0 ± 0.1", "plain"]
    assert "3.0 †" in [e["text"] for e in read.all("td")]
    assert "missing" in next(e for e in read.all("td") if e["text"] == "missing")["attrs"]["class"]
    assert read.all("code")[0]["text"] == "plain\n  indented"
    assert "open" in read.all("details")[0]["attrs"]


def test_what_users_write_stays_text():
    text = html.to_html(document(NASTY))
    read = check(text)
    assert read.all("h1")[0]["text"] == f"sweep {NASTY}"
    assert read.all("code")[0]["text"] == f"{NASTY}\n  indented"
    assert NASTY in [e["text"] for e in read.all("th")]


def test_the_short_form_leaves_out_what_is_not_brief():
    text = to_markdown(document())
    assert "## Answer" in text
    assert "## Long" not in text
    assert "![a figure of it](a.png)" in text
    assert "    plain\n      indented" in text
    assert "**plain** note" in text


def test_images_are_small_and_of_the_size_they_say(tmp_path):
    file = tmp_path / "a.png"
    Image.effect_noise((2800, 1000), 50).convert("RGB").save(file)
    for photo, start in ((False, b"\x89PNG"), (True, b"\xff\xd8")):
        data, width, height = html.embedded(file, photo=photo)
        assert data.startswith(start)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (width, height) == (html.MOST_PIXELS, 500)
        assert len(data) < file.stat().st_size / 3


def test_white_stays_white_and_light_grey_light_grey(tmp_path):
    image = Image.new("RGB", (400, 300), "white")
    image.paste((240, 240, 240), (100, 0, 200, 300))
    image.paste((0, 114, 178), (0, 0, 20, 20))
    image.save(tmp_path / "a.png")
    with Image.open(io.BytesIO(html.embedded(tmp_path / "a.png")[0])) as small:
        pixels = [small.convert("RGB").getpixel((x, 150)) for x in (50, 150)]
    assert pixels == [(255, 255, 255), (240, 240, 240)]


def test_what_is_see_through_becomes_white(tmp_path):
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "a.png")
    data, *_ = html.embedded(tmp_path / "a.png")
    with Image.open(io.BytesIO(data)) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_nothing_sticks_out_on_a_phone(tmp_path):
    """A frame with the width of a phone holds the page; a script of the frame measures it."""
    file = tmp_path / "page.html"
    file.write_text(html.to_html(document("wordwithoutanybreak" * 12)))
    holder = tmp_path / "holder.html"
    holder.write_text(
        "<iframe id=f src=page.html style='width:390px;height:800px;border:0'></iframe><script>"
        "onload = () => { const d = document.getElementById('f').contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} of ${d.clientWidth}`; }</script>"
    )
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/browser"]  # fmt: skip
    done = subprocess.run(
        [BROWSER, *options, holder.as_uri()], capture_output=True, text=True, timeout=600, check=True
    )  # fmt: skip
    found = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert found, done.stdout[:300]
    assert int(found[1]) <= int(found[2])
    assert int(found[2]) >= 370


def test_what_a_terminal_would_obey_is_not_in_a_report():
    nasty = document("a \x1b[31m\x00\x07 b\n```\nc")
    for text in (html.to_html(nasty), to_markdown(nasty)):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert "a \N{REPLACEMENT CHARACTER}[31m" in text
    folds = [line for line in to_markdown(nasty).splitlines() if line.startswith("**a ")]
    assert folds, "the title of what folds stays on its line"
    assert all(line.count("**") == 2 for line in folds)
