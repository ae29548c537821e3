import io
import logging
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table
from rich.text import Text

from densevit.cli.parser import Parser
from densevit.utils import console
from densevit.utils.console import LogFormatter, say, warn
from densevit.utils.errors import UserError, exit_code
from densevit.utils.escape import markdown, markdown_paragraph, spreadsheet, visible

NASTY = "a\x1b]0;x\x07\x1b[2J\u202eb\r\nc\rd\x9b2J\x00\u2028\udc9be"
SHOWN = "a\ufffd]0;x\ufffd\ufffd[2J\ufffdb\nc\ufffdd\ufffd2J\ufffd\ufffd\\udc9be"


def test_what_a_terminal_would_obey_is_a_mark():
    assert visible(NASTY) == SHOWN
    assert visible("a\tb é 日本 שלום 👩‍🔬 ‎") == "a       b é 日本 שלום 👩‍🔬 ‎"


@given(st.text(st.characters()))
def test_text_is_visible_once_and_for_all(text):
    shown = visible(text)
    assert visible(shown) == shown
    assert not {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} - {"\n"}
    shown.encode()


def test_every_way_to_the_terminal_is_safe(monkeypatch, capsys):
    say(NASTY)
    warn(NASTY)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")

    def fail():
        raise UserError(NASTY)

    assert exit_code("densevit", fail) == 2
    with pytest.raises(SystemExit):
        Parser("densevit").parse_args([NASTY.replace("\r\n", "")])
    read = capsys.readouterr().err
    assert read.startswith(f"densevit: {SHOWN}\ndensevit: a\ufffd]0;x")
    assert "\x1b" not in read
    record = logging.LogRecord("densevit", logging.INFO, "", 1, "%s", (NASTY,), None)
    assert LogFormatter("x %(message)s").format(record) == f"x {SHOWN}"


def test_styles_are_the_only_escapes_on_a_terminal():
    written = io.StringIO()
    shown = console._Console(force_terminal=True, file=written, width=60, markup=False)
    table = Table("head")
    table.add_row(NASTY)
    table.add_row(Text(NASTY, style="bold"))
    for thing in (NASTY, Text(NASTY), table):
        shown.print(thing, style="red")
    text = re.sub(r"\x1b\[[0-9;]*m", "", written.getvalue())
    assert "\ufffd]0;x" in text
    assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}
    borders = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert len({len(line) for line in borders if line}) == 1, "the table is as wide as it is drawn"


_MARKS = st.text(st.sampled_from("ab 1.)(*_`~[]<>/!&#;:$|\\\"'+-=\n\t^{}") | st.characters(), max_size=30)  # fmt: skip


@given(_MARKS)
@example("1. a")
@example("[a]: b")
@example("<a@b.c> &amp; ```")
@example("***a*** __b__ ~~c~~")
def test_markdown_shows_a_text_as_it_is(text):
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    wanted = " ".join(visible(text).split())
    if not wanted:
        return
    opened, inline, closed = parser.parse(markdown_paragraph(text))
    assert (opened.type, closed.type) == ("paragraph_open", "paragraph_close")
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == wanted
    table = parser.parse(f"| a | b |\n| - | - |\n| {markdown(text)} | c |\n")
    cells = [token.children for token in table if token.type == "inline"][2:]
    assert ["".join(child.content for child in cell) for cell in cells] == [wanted, "c"]


@pytest.mark.parametrize(
    "text", ["cl_mode 0.1", "p < 0.001, [70.1, 72.3] & more", "vit_tiny (n=3): a > b", "5 * 3 *"]
)
def test_markdown_leaves_plain_sentences_alone(text):
    assert markdown(text) == text


@pytest.mark.parametrize("text", ["-1.5", "+2", "-1e-3", "-", "+1.0 [-0.5, 1.5]", "a=b", "−1", ""])
def test_numbers_and_words_are_no_formula(text):
    assert spreadsheet(text) == text


@pytest.mark.parametrize("text", ["=1", "@A1", "-1+cmd|x", "+A1", "＝1", " =1", "\t=1", "\r\n@a"])
def test_what_a_spreadsheet_would_compute_begins_with_an_apostrophe(text):
    assert spreadsheet(text) == f"'{visible(text)}"
