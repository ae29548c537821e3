import csv
import io

import pandas as pd
import pytest
from rich.console import Console

from densevit.results.tables.table import TextTable, to_csv, to_markdown, to_rich

SHEET = TextTable(
    "Title",
    ["cell", "a|b", "c"],
    [["none", "71.2", "missing"], ["[red]x\\|", "+1.0 [0.5, 1.5]", "3"]],
    note="What it means.",
    marks={(0, 1): "best", (1, 1): "tied"},
)


def shown(sheet):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(sheet))
    return console.export_text(styles=True), console.export_text()


def test_markdown_marks_escapes_and_ends_with_the_note():
    assert to_markdown(SHEET).splitlines() == [
        "| cell       | a\\|b              | c       |",
        "| ---------- | ----------------: | ------: |",
        "| none       | **71.2**          | missing |",
        "| [red]x\\\\\\| | +1.0 [0.5, 1.5] † | 3       |",
        "",
        "What it means.",
    ]


def test_csv_of_texts_has_no_marks_title_or_note():
    read = list(csv.reader(io.StringIO(to_csv(SHEET))))
    assert read == [SHEET.head, *SHEET.rows]


def test_csv_prefers_the_numbers_behind_the_texts():
    data = pd.DataFrame({"cell": ["none"], "a": [100 / 3], "b": [float("nan")]})
    text = to_csv(TextTable("", ["cell"], [["none"]], data=data))
    assert text == f"cell,a,b\nnone,{100 / 3!r},\n"


def test_the_terminal_takes_names_as_they_are():
    console = Console(width=200, record=True, file=io.StringIO(), force_terminal=True)
    console.print(to_rich(SHEET))
    styled = console.export_text(styles=True, clear=False)
    plain = console.export_text()
    for text in ("Title", "What it means.", "[red]x\\|", "+1.0 [0.5, 1.5] †", "a|b"):
        assert text in plain
    assert "\x1b[1m" in styled.split("71.2")[0].splitlines()[-1]  # bold


@pytest.mark.parametrize("write", [to_markdown, to_csv, to_rich])
def test_no_rows_is_a_table_too(write):
    assert write(TextTable("", ["cell", "val"], []))


def test_a_narrow_terminal_folds_names_and_hides_none():
    names = [f"imagenet-{word}" for word in ("val", "v2", "sketch", "rendition", "adversarial")]
    sheet = TextTable("Wide", ["cl_mode", *names], [["dense", *["71.2 ± 0.8 †"] * 5]])
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(to_rich(sheet))
    text = console.export_text()
    assert "…" not in text
    columns = [line.split("┃")[1:-1] for line in text.splitlines() if line.startswith("┃")]
    heads = ["".join(part.strip() for part in column) for column in zip(*columns, strict=True)]
    assert heads == ["cl_mode", *names]
