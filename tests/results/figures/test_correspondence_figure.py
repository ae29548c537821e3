"""The figures show what the records hold."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from densevit.evaluate.correspondence import Correspondences, Views
from densevit.evaluate.correspondence_file import write_matches
from densevit.results.figures.attention import _attention, draw_attention, draw_similarity
from densevit.results.figures.correspondence import (
    count_text,
    draw_before_after,
    draw_matches,
    matches,
    select_patches,
)
from densevit.results.figures.style import SMALL
from densevit.results.report import write
from densevit.runs.directory import run_folder


def record(grid=(6, 6), seed=0):
    """Return synthetic matches: about a third each correct, wrong and without a true match."""
    rng = np.random.default_rng(seed)
    count = grid[0] * grid[1]
    truth = np.where(rng.random(count) < 1 / 3, -1, rng.integers(0, count, count))
    return Correspondences(
        views=Views(
            rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8), np.zeros((2, 4), np.float32)
        ),
        grid=grid,
        partner=rng.integers(0, count, count),
        similarity=rng.uniform(0.31, 0.97, count).astype(np.float32),
        truth=truth,
        right=(truth >= 0) & (rng.random(count) < 0.5),
    )


def lines(axes):
    """Return the ends of the drawn lines (not of their markers) by style."""
    styles = {}
    for line in axes.get_lines():
        if line.get_linestyle() != "None":
            styles.setdefault(line.get_linestyle(), []).append(line.get_xydata())
    return styles


def test_the_most_similar_of_each_region_is_select_patches():
    found = record((6, 6))
    # 4 of 6 x 6: regions of 3 x 3.
    table = found.similarity.reshape(6, 6)
    expected = []
    for top in (0, 3):
        for left in (0, 3):
            block = table[top : top + 3, left : left + 3]
            row, column = np.unravel_index(block.argmax(), block.shape)
            expected.append((top + row) * 6 + left + column)
    assert select_patches(found, 4).tolist() == sorted(expected)
    assert (
        select_patches(found, 36).tolist() == select_patches(found, 99).tolist() == list(range(36))
    )
    assert select_patches(found, 1).tolist() == [found.similarity.argmax()]
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        select_patches(found, 0)


@pytest.mark.parametrize("grid", [(14, 14), (100, 1), (1, 100), (5, 9), (16, 3)])
def test_nearly_as_many_as_wanted_are_select_patches(grid):
    for most in (2, 7, 24):
        patches = select_patches(record(grid), most)
        assert len(set(patches)) == len(patches)
        assert 0.6 * most < len(patches) <= most


def test_a_choice_is_blind_to_what_is_right():
    found = record()
    nothing = Correspondences(
        **{**vars(found), "truth": np.full(36, -1), "right": np.zeros(36, bool)}
    )
    assert select_patches(found, 9).tolist() == select_patches(nothing, 9).tolist()


def test_lines_and_words_say_what_the_record_says():
    found = [record(seed=1), record((3, 4), seed=2)]
    figure = matches([("a $5 title", found)], most=16)
    for axes, one in zip(figure.axes, found, strict=False):
        drawn = select_patches(one, 16)
        right = [i for i in drawn if one.right[i]]
        none = [i for i in drawn if one.truth[i] == -1]
        wrong = [i for i in drawn if i not in right and i not in none]
        assert min(len(right), len(wrong), len(none)) > 0
        styles = lines(axes)
        assert {s: len(ends) for s, ends in styles.items()} == {
            "-": len(right), "--": len(wrong), ":": len(none),
        }  # fmt: skip
        text = axes.get_xlabel()
        assert text.split("\n")[0] == (
            f"{len(right)} of {len(drawn)} right, {len(wrong)} wrong, "
            f"{len(none)} without a true match"
        )
        rows, columns = one.grid
        starts = {tuple(np.round(ends[0], 6)) for ends in styles["-"]}
        assert starts == {
            (round((i % columns + 0.5) / columns, 6), round((i // columns + 0.5) / rows, 6))
            for i in right
        }
        targets = {tuple(np.round(ends[1] - (1.12, 0.3), 6)) for ends in styles["-"]}
        assert targets == {
            (round((i % columns + 0.5) / columns, 6), round((i // columns + 0.5) / rows, 6))
            for i in one.partner[right]
        }
    share = 100 * found[0].right.sum() / (found[0].truth >= 0).sum()
    assert (
        figure.axes[0]
        .get_xlabel()
        .endswith(f"of all {(found[0].truth >= 0).sum()} with a true match, {share:.0f} % right")
    )
    assert "\n" not in figure.axes[1].get_xlabel()  # all its matches are drawn


def test_the_counts_by_hand():
    found = Correspondences(
        **{
            **vars(record((1, 6))),
            "truth": np.array([-1, 0, 1, 2, -1, 5]),
            "right": np.array([False, True, False, True, False, True]),
        }
    )
    assert count_text(found, np.arange(6)) == "3 of 6 right, 1 wrong, 2 without a true match"
    assert count_text(found, np.array([0, 2, 3])) == (
        "1 of 3 right, 1 wrong, 1 without a true match\nof all 4 with a true match, 75 % right"
    )


def test_one_color_scale_holds_every_drawn_match():
    before, after = record(seed=1), record(seed=2)
    figure = matches([("before", before), ("after", after)], most=9)
    drawn = [one.similarity[select_patches(one, 9)] for one in (before, after)]
    low, high = figure.axes[-1].get_xlim()  # of the color bar
    assert low <= np.min(drawn) < low + 0.1
    assert high - 0.1 < np.max(drawn) <= high


def test_twice_gives_the_same_bytes_and_other_numbers_others(tmp_path):
    found, other = record(seed=1), record(seed=2)
    similarity = found.similarity.reshape(6, 6)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths[:2]:
        draw_matches(found, path)
    for path in paths[2:4]:
        draw_before_after(found, other, path, path.with_suffix(".pdf"))
    for path in paths[4:]:
        draw_similarity(found.views.pixels[0], similarity, 8, path)
    one, two, three, four, five, six = (path.read_bytes() for path in paths)
    assert (one, three, five) == (two, four, six)
    draw_matches(other, paths[0])
    assert paths[0].read_bytes() != one
    widths = [Image.open(path).width for path in paths[::2]]
    assert widths == pytest.approx([1050, 1050, 1050], abs=2)
    pdfs = [path.with_suffix(".pdf") for path in paths]
    assert [pdf.exists() for pdf in pdfs] == [False, False, True, True, False, False]
    assert pdfs[2].read_bytes()[:5] == b"%PDF-"
    assert pdfs[2].read_bytes() == pdfs[3].read_bytes()


def test_of_a_diverged_network_each_match_is_drawn_though_no_similarity_is_a_number():
    found = record()
    nan = Correspondences(**{**vars(found), "similarity": np.full(36, np.nan, np.float32)})
    figure, usual = (matches([("", one)], 36) for one in (nan, found))
    drawn, expected = (
        {style: sorted(map(np.ndarray.tolist, ends)) for style, ends in lines(axes).items()}
        for axes in (figure.axes[0], usual.axes[0])
    )
    assert drawn == expected
    assert figure.axes[0].get_xlabel() == usual.axes[0].get_xlabel()
    assert figure.axes[-1].get_xlim() == (-0.1, 0)  # of the color bar
    figure.savefig(io.BytesIO())


def test_before_and_after_hold_as_many_pictures(tmp_path):
    with pytest.raises(ValueError, match=r"same number of images, at least 1; got \[2, 1\]"):
        draw_before_after([record()] * 2, record(), tmp_path / "x.png", tmp_path / "x.pdf")
    with pytest.raises(ValueError, match=r"got \[0\]"):
        draw_matches([], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("most", [9, 36])  # text of two lines and of one
def test_no_text_is_cut_off(rows, sides, most):
    figure = matches([("before training", [record((14, 14))] * rows)] * sides, most)
    assert figure.get_size_inches()[0] == 3.5
    figure.draw_without_rendering()
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert {"before training", "view 1", "wrong"} <= {text.get_text() for text in shown}
    for text in shown:
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text
        assert text.get_fontsize() >= SMALL
    boxes = [text.get_window_extent() for text in shown]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_before_is_on_the_left_and_after_on_the_right():
    before, after = record(seed=1), record(seed=2)
    figure = matches([("before", before), ("after", after)], 36)
    left, right = figure.axes[:2]
    assert [left.get_title(), right.get_title()] == ["before", "after"]
    assert left.get_position().x1 < right.get_position().x0
    for axes, found in ((left, before), (right, after)):
        text = " ".join(axes.get_xlabel().split())
        assert text == " ".join(count_text(found, select_patches(found, 36)).split())


def test_a_report_has_them_as_png_and_pdf_and_draws_them_once(tmp_path):
    rows = [{"run": "r1", "cell": "c", "seed": 3, "state": "finished", "label": "dense"}]
    plan = SimpleNamespace(outputs=tmp_path)
    found = SimpleNamespace(plan=plan, coverage=pd.DataFrame(rows))
    for when in ("before", "after"):
        file = run_folder(tmp_path, "r1").matches_file(when)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_matches(file, [record()])
    png, pdf = (tmp_path / f"matches-r1.{kind}" for kind in ("png", "pdf"))

    def drawn():
        ((title, block),) = write._matches(found, tmp_path)
        assert (title, block.file, block.pdf) == ("dense, seed 3", png.name, pdf.name)
        assert "before (left) and after training (right)" in block.caption
        assert block.width == pytest.approx(1050, abs=2)
        return png.stat().st_mtime_ns, pdf.stat().st_mtime_ns

    first = drawn()
    assert drawn() == first
    pdf.unlink()
    assert drawn() != first  # as in a report of an earlier version, which had no PDF
    assert pdf.read_bytes()[:5] == b"%PDF-"


def heads(count, grid=(4, 4), seed=0):
    weights = np.random.default_rng(seed).random((count, *grid), dtype=np.float32)
    return weights / (weights.sum(axis=(1, 2), keepdims=True) * 1.25)


@pytest.mark.parametrize("count", [1, 3, 6, 12, 16])
def test_each_head_and_their_mean_is_drawn_and_its_highest_share_told(count):
    weights = heads(count)
    image = record().views.pixels[0]
    figure = _attention(image, weights, "attention of the CLS token, block 11")
    drawn = [axes for axes in figure.axes if axes.get_images()]
    titles = [axes.get_title() for axes in drawn]
    assert titles == ["image", "mean", *(f"head {i}" for i in range(count))]
    assert (drawn[0].get_images()[0].get_array() == image).all()
    for axes, shown in zip(drawn[1:], [weights.mean(axis=0), *weights], strict=True):
        (image,) = axes.get_images()
        assert (image.get_array() == shown).all()
        assert image.get_clim() == (0, pytest.approx(shown.max()))
        assert axes.get_xlabel() == f"{100 * shown.max():.1f} %"
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in texts]
    for text, box in zip(texts, boxes, strict=True):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_attention_twice_gives_the_same_bytes_and_of_a_diverged_network_a_picture(tmp_path):
    pixels, paths = record().views.pixels[0], [tmp_path / f"{i}.png" for i in range(3)]
    nothing = np.full((3, 4, 4), np.nan, np.float32)
    for path, weights in zip(paths, (heads(3), heads(3), nothing), strict=True):
        draw_attention(pixels, weights, path, title="attention")
    one, two, three = (path.read_bytes() for path in paths)
    assert one == two != three
    widths = [Image.open(path).width for path in paths]
    assert widths == pytest.approx([1050] * 3, abs=2)
    _, *maps = [axes for axes in _attention(pixels, nothing, "").figure.axes if axes.get_images()]
    assert [axes.get_xlabel() for axes in maps] == ["0.0 %"] * 4  # their mean, and three heads
    assert not any(axes.get_images()[0].get_array().any() for axes in maps)
