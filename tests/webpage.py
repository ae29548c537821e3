"""Parse a page and check what every page must satisfy."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Read(HTMLParser):
    """Collect every element with its attributes and text, and check that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self.open]}  # fmt: skip
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [e for e in self.elements if e["tag"] == tag]


def check(text):
    """Check a page: it works offline, links and ids resolve, tables and images have descriptions."""
    read = Read(text)
    assert text.startswith("<!DOCTYPE html>")
    assert read.all("html")[0]["attrs"]["lang"] == "en"
    assert any(m["attrs"].get("name") == "viewport" for m in read.all("meta"))
    assert [script["attrs"] for script in read.all("script")] == [{}]  # ours, within the page
    for tag in ("link", "iframe", "object", "base"):
        assert read.all(tag) == []
    ids = [e["attrs"]["id"] for e in read.elements if "id" in e["attrs"]]
    assert len(ids) == len(set(ids))
    for element in read.elements:
        attrs = element["attrs"]
        assert not any(name.startswith("on") for name in attrs)
        if "href" in attrs:
            assert attrs["href"][0] == "#"
            assert attrs["href"][1:] in ids
        if "src" in attrs:
            assert attrs["src"].startswith("data:image/")
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
    style = "".join(e["text"] for e in read.all("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    for image in read.all("img"):
        assert len(image["attrs"]["alt"]) > 3
        assert image["attrs"]["width"].isdecimal()
        assert "figure" in image["inside"]
    assert len(read.all("thead")) == len(read.all("table")) == len(read.all("caption"))
    assert all(th["attrs"]["scope"] in ("col", "row") for th in read.all("th"))
    levels = [int(e["tag"][1]) for e in read.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1
    assert set(levels[1:]) <= {2}
    return read
