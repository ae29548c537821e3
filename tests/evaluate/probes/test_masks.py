"""Mask files: what is read, what is rejected, and the error messages."""

import pickle
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from densevit.config.run_config import RunConfig
from densevit.data.shapes import dataset
from densevit.evaluate.probes.mask_values import VOC
from densevit.evaluate.probes.masks import (
    check_mask_splits,
    check_masks,
    masked_sets,
    open_masks,
)
from densevit.utils.errors import UserError


def save(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
        assert image.mode == "P"
    image.save(path)


def photo(path, size=(6, 4), turned=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.new("RGB", size, (9, 9, 9)).save(path, exif=exif)


def masked(root, count=3, mode="L", values=(0, 1, 2, 255)):
    """Write images of 6x4 pixels and masks; the first pixel of a mask is its index."""
    for index in range(count):
        photo(root / "images" / f"{index}.jpg")
        mask = np.resize(values, (4, 6))
        mask[0, 0] = index
        save(root / "masks" / f"{index}.png", mask, mode)
    return root


def said(call, *arguments, **settings):
    with pytest.raises(UserError) as error:
        call(*arguments, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused(root, **settings):
    return said(lambda: check_masks(open_masks(root, **settings)))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_folder_of_pictures_and_masks(tmp_path, mode):
    masked(tmp_path, mode=mode)
    (tmp_path / "images" / "._0.jpg").write_text("a resource fork")
    (tmp_path / "masks" / "notes.txt").write_text("no mask")
    (tmp_path / "classes.txt").write_text("ground\nred thing\nblue thing\n")
    found = open_masks(tmp_path)
    assert found.classes == ("ground", "red thing", "blue thing")
    assert tuple(found.ids) == ("images/0.jpg", "images/1.jpg", "images/2.jpg")
    assert len(found) == len(found.labels) == 3
    assert set(found.labels) == {0}
    wanted = np.resize([0, 1, 2, 255], (4, 6))
    for index in range(3):
        wanted[0, 0] = index
        mask = found.mask(index)
        assert mask.dtype == np.uint8
        assert mask.tolist() == wanted.tolist()
        assert found.image(index).decode().size == (6, 4)
    assert found.fingerprint()["images"] == 3
    check_masks(found)
    assert pickle.loads(pickle.dumps(found)).mask(2)[0, 0] == 2  # as loading processes receive it


def test_without_names_the_classes_are_the_numbers_of_all_splits(tmp_path):
    masked(tmp_path / "train", values=[0, 1, 2, 4, 255])
    masked(tmp_path / "val", values=[0, 3, 5])
    for found in (
        open_masks(tmp_path, "train"),
        open_masks(tmp_path / "train"),
        open_masks(str(tmp_path), "val"),
    ):
        assert found.classes == ("0", "1", "2", "3", "4", "5")
    (tmp_path / "classes.txt").write_text("abcdefgh".replace("", "\n").strip())
    assert open_masks(tmp_path / "val").classes == tuple("abcdefgh")


def test_a_stray_value_makes_no_classes(tmp_path):
    masked(tmp_path / "train", values=[0, 1, 255])
    masked(tmp_path / "val", values=[0, 1, 77])
    told = refused(tmp_path / "val")
    assert "holds the value 77, but no mask holds 3: name the classes in " in told
    assert "val/masks/0.png" in told
    (tmp_path / "classes.txt").write_text("a\nb\n")
    found = open_masks(tmp_path, "val")
    with pytest.raises(UserError, match="77, beyond the 2 classes"):
        check_masks(found)


def test_masks_without_any_pixel_to_learn_from_or_to_score(tmp_path):
    masked(tmp_path, values=[255])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    photo(tmp_path / "images" / "last.jpg")
    save(tmp_path / "masks" / "last.png", np.full((4, 6), 255, np.uint8), "L")
    for file in (tmp_path / "masks").glob("*.png"):
        save(file, np.full((4, 6), 255, np.uint8), "L")
    with pytest.raises(UserError, match="all pixels are void, so that nothing"):
        check_masks(open_masks(tmp_path))


def with_values(root, values):
    """Write train and val whose masks hold these values, each of them also alone in a mask."""
    for split in ("train", "val"):
        for index, value in enumerate([*values, values]):
            photo(root / split / "images" / f"{index}.jpg", (6 + (split == "val"), 4))
            mask = np.resize(value, (4, 6 + (split == "val")))
            save(root / split / "masks" / f"{index}.png", mask)
    return root


@pytest.mark.parametrize(
    ("values", "void", "classes", "read"),
    [
        ([0, 255], [], "0 255", [0, 1]),  # foreground as 255, without any void pixel
        ([0, 1, 2], [0, 255], "1 2", [255, 0, 1]),  # ADE20K: 0 is unlabelled
        ([0, 1, 254], [254], "0 1", [0, 1, 255]),
    ],
)
def test_which_values_are_void_is_a_setting(tmp_path, values, void, classes, read):
    with_values(tmp_path, values)
    config = RunConfig(masks=str(tmp_path), void=void)
    train, val = masked_sets(config, 32)
    assert train.classes == tuple(classes.split())
    assert [int(train.mask(index)[0, 0]) for index in range(len(values))] == read
    check_mask_splits(train, val)
    assert train.fingerprint()["void"] == void
    (tmp_path / "classes.txt").write_text("left\nright\n")
    train, _ = masked_sets(config, 32)
    assert train.classes == ("left", "right")
    assert [int(train.mask(index)[0, 0]) for index in range(len(values))] == read


def test_masks_that_every_prediction_gets_right_are_refused(tmp_path):
    with_values(tmp_path / "binary", [0, 255])
    hint = "the values that are no class are void: [255] (or such as [0, 255], or [])"
    told = refused(tmp_path / "binary" / "train")
    assert told.endswith(f"binary/train: its masks have 1 classes, must have at least 2; {hint}")
    (tmp_path / "binary" / "classes.txt").write_text("ground\nthing\n")
    told = refused(tmp_path / "binary", split="train")
    assert f"all pixels are ground, so that nothing can be told apart; {hint}" in told
    with_values(tmp_path / "more", [0, 1])
    (tmp_path / "more" / "classes.txt").write_text("a\nb\nc\n")
    train, val = masked_sets(RunConfig(masks=str(tmp_path / "more")), 32)
    check_masks(val)
    told = said(check_mask_splits, train, val)
    assert "no pixel of these training masks is of c, which nothing can learn" in told
    assert hint in told


def test_masks_to_fit_and_to_test_share_no_image(tmp_path):
    masked(tmp_path / "train")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    told = said(check_mask_splits, *masked_sets(RunConfig(masks=str(tmp_path)), 32))
    assert told.startswith("masks: val: 100.0 % of its images are also in train: images/0.jpg = ")


def test_the_file_is_named_for_each_damage(tmp_path):
    masked(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    file = tmp_path / "masks" / "1.png"
    start = f"masks: {file}: "
    save(file, [[0] * 5] * 4)
    assert refused(tmp_path) == start + "is 5x4 pixels, its image images/1.jpg 6x4"
    save(file, np.zeros((4, 6, 3)))
    assert refused(tmp_path).startswith(start + "is RGB, must be gray or palette")
    save(file, np.resize([0, 1, 7], (4, 6)))
    assert refused(tmp_path).startswith(
        start + "holds the value 7, beyond the 3 classes (0 to 2); "
    )
    Image.fromarray(np.ones((4, 6), np.uint16)).save(file)
    assert refused(tmp_path).startswith(start + "has 16 bits a sample")
    Image.fromarray(np.ones((4, 6), np.uint8)).save(file, format="JPEG")
    assert refused(tmp_path).startswith(start + "is JPEG, must be PNG")
    rng = np.random.default_rng(0)
    save(file, rng.integers(0, 3, (4, 6)))
    file.write_bytes(file.read_bytes()[:-30])
    assert refused(tmp_path).startswith(start + "cannot be read as an image")
    file.write_text("no picture")
    assert refused(tmp_path).startswith(start + "cannot be read as an image")


def test_masks_and_pictures_come_in_pairs(tmp_path):
    masked(tmp_path)
    save(tmp_path / "masks" / "lonely.png", np.zeros((4, 6)))
    assert f"{tmp_path / 'masks' / 'lonely.png'}: has no image" in refused(tmp_path)
    photo(tmp_path / "images" / "lonely.jpg")
    photo(tmp_path / "images" / "bare.jpg")
    assert f"{tmp_path / 'images' / 'bare.jpg'}: has no mask" in refused(tmp_path)
    (tmp_path / "images" / "bare.jpg").unlink()
    photo(tmp_path / "images" / "1.png")
    assert "2 images are called 1" in refused(tmp_path)


def test_folders_that_are_no_sets_of_masks(tmp_path):
    assert refused(tmp_path / "gone") == f"masks: {tmp_path / 'gone'}: no such folder"
    assert f"{tmp_path}: holds no images/ and masks/" in refused(tmp_path)
    masked(tmp_path / "train")
    assert f"{tmp_path / 'val'}: holds no images/" in refused(tmp_path, split="val")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    assert f"{tmp_path / 'images'}: holds no images" in refused(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(256))))
    assert "names 256 classes, at most 255 fit" in refused(tmp_path, split="train")
    for names in ("a\n\nb\n", "a\na\n"):
        (tmp_path / "classes.txt").write_text(names)
        assert "must have one class name a line" in refused(tmp_path, split="train")


def test_a_mask_fits_the_upright_picture(tmp_path):
    photo(tmp_path / "images" / "a.jpg", size=(6, 4), turned=True)
    save(tmp_path / "masks" / "a.png", np.resize([0, 1], (6, 4)))
    check_masks(open_masks(tmp_path))
    save(tmp_path / "masks" / "a.png", np.resize([0, 1], (4, 6)))
    assert "is 6x4 pixels, its image images/a.jpg 4x6" in refused(tmp_path)


def png(depth, color, row, width):
    """Return a PNG of one row, written from its specification."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(48)) if color == 3 else b""
    data = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("color", [0, 3])
@pytest.mark.parametrize(
    ("depth", "row", "values"),
    [(1, b"\xb0", [1, 0, 1, 1]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x1e\x2f", [1, 14, 2, 15])],
)
def test_values_of_few_bits_are_the_classes_that_were_written(tmp_path, color, depth, row, values):
    photo(tmp_path / "images" / "a.jpg", size=(4, 1))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(png(depth, color, row, 4))
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(16))))
    assert open_masks(tmp_path).mask(0).tolist() == [values]


def voc(root):
    for stem in ("2007_1", "2007_2", "2008_3"):
        photo(root / "JPEGImages" / f"{stem}.jpg")
        save(root / "SegmentationClass" / f"{stem}.png", np.resize([0, 15, 20, 255], (4, 6)), "P")
    photo(root / "JPEGImages" / "unmasked.jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_2\n2007_1\n")
    (lists / "val.txt").write_text("2008_3\n")
    return root


def test_pascal_voc(tmp_path):
    voc(tmp_path)
    train, val = (open_masks(tmp_path, split) for split in ("train", "val"))
    assert tuple(train.ids) == ("JPEGImages/2007_2.jpg", "JPEGImages/2007_1.jpg")
    assert len(VOC) == 21
    assert train.classes == val.classes == VOC
    assert VOC[15] == "person"
    assert VOC[20] == "tvmonitor"
    assert set(val.mask(0).flat) == {0, 15, 20, 255}


def test_damage_of_pascal_voc(tmp_path):
    voc(tmp_path)
    assert "no such split of Pascal VOC" in refused(tmp_path)
    assert "test.txt: no such split of Pascal VOC" in refused(tmp_path, split="test")
    file = tmp_path / "SegmentationClass" / "2008_3.png"
    save(file, np.full((4, 6), 21), "P")
    assert f"{file}: holds the value 21, beyond the 21 classes" in refused(tmp_path, split="val")
    (tmp_path / "JPEGImages" / "2008_3.jpg").unlink()
    assert f"{file}: has no image" in refused(tmp_path, split="val")
    file.unlink()
    assert f"{file}: is missing" in refused(tmp_path, split="val")
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_text("")
    assert "lists no images" in refused(tmp_path, split="val")


def test_the_drawn_set(tmp_path, monkeypatch):
    monkeypatch.setitem(dataset.COUNTS, "val", 10)
    found = open_masks("shapes", "val", size=32, drawn=tmp_path)
    assert found.classes == ("background", *dataset.CLASSES)
    assert len(found) == 10
    for index in range(10):
        wanted = dataset.draw("val", index, 32)
        assert found.mask(index).tolist() == wanted.mask.tolist()
        assert np.array_equal(found.image(index).decode(), wanted.image)
        assert set(found.mask(index).flat) == {0, wanted.label + 1}
    message = said(open_masks, "shapes", "vall", drawn=tmp_path)
    assert message == "masks: shapes: no split vall; did you mean 'val'?"


def test_no_torch_is_imported():
    code = "import sys, densevit.evaluate.probes.masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
