"""Image folders: what is read, what is rejected, and the error messages."""

import ast
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_images
from PIL import Image, ImageOps, UnidentifiedImageError

from densevit.config.run_config import RunConfig
from densevit.data.check_contents import check_contents
from densevit.data.check_folders import examine, listed
from densevit.data.datasets import check_fingerprint, data_folder, open_data
from densevit.data.image import read_image
from densevit.data.image_folder import scan
from densevit.data.shapes.export import draw_folders
from densevit.data.shared_images import find_shared
from densevit.evaluate.metrics import score
from densevit.evaluate.predict import from_logits
from densevit.results.report import html
from densevit.utils.errors import UserError


def said(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def config_of(root, **settings):
    return RunConfig(dataset="blobs", data_dir=str(root), batch_size=2, **settings)


def test_classes_files_and_labels_are_listed_in_order(tmp_path):
    write_images(tmp_path, {"b": 2, "a": 3})
    (tmp_path / "a" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "deep" / "x.JPEG")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / "._1.png").write_text("a resource fork")
    (tmp_path / ".hidden").mkdir()
    found = scan(tmp_path, "here")
    assert found.classes == ("a", "b")
    assert found.ids == ("a/0.png", "a/1.png", "a/2.png", "a/deep/x.JPEG", "b/0.png", "b/1.png")
    assert found.labels == (0, 0, 0, 0, 1, 1)


def test_missing_and_empty_folders_are_named(tmp_path):
    assert said(scan, tmp_path / "gone", "here") == f"here: {tmp_path / 'gone'}: no such folder"
    assert "holds no class folders" in said(scan, tmp_path, "here")
    (tmp_path / "a").mkdir()
    assert f"{tmp_path / 'a'}: holds no images" in said(scan, tmp_path, "here")


def test_a_val_that_lacks_classes_is_scored_on_the_others(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2, "c": 2, "d": 2})
    write_images(tmp_path / "val", {"d": 3, "b": 1}, 1)
    data = open_data(config_of(tmp_path), 32)
    assert data.val.classes == ("a", "b", "c", "d")
    assert list(data.val.labels) == [1, 3, 3, 3]
    assert data.notes() == [
        "val: has no images of 2 of its 4 classes (a, c): its scores are those of the others"
    ]
    predictions = from_logits(data.val, torch.eye(4)[[1, 3, 3, 0]])
    numbers = score(predictions)
    assert (numbers["top1"], numbers["ways"], numbers["n"]) == (75, 4, 4)
    assert {name: numbers[f"n_{name}"] for name in "abcd"} == {"a": 0, "b": 1, "c": 0, "d": 3}
    write_images(tmp_path / "val" / "..", {"val/e": 1})
    told = said(open_data, config_of(tmp_path), 32)
    assert f"{tmp_path / 'val'}: its classes are not those of train/: " in told
    assert "has e besides" in told


def test_one_class_is_refused_with_the_folders_that_may_be_the_classes(tmp_path):
    write_images(tmp_path / "train" / "images", {"a": 2, "b": 2})
    write_images(tmp_path / "val" / "images", {"a": 1, "b": 1}, 1)
    told = said(open_data, config_of(tmp_path), 32)
    assert f"{tmp_path / 'train'}: has only the class images, so that every accuracy" in told
    assert "its subfolders (a, b) are the classes, images/ is one folder level too many" in told


@pytest.mark.parametrize("how", ["copied", "linked", "renamed"])
def test_a_val_of_training_images_is_refused(tmp_path, how, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "train", {"a": 3, "b": 3})
    if how == "linked":
        (tmp_path / "val").symlink_to(tmp_path / "train")
    else:
        shutil.copytree(tmp_path / "train", tmp_path / "val")
    if how == "renamed":
        for file in [*(tmp_path / "val").rglob("*.png")]:
            file.rename(file.with_name(f"x{file.name}"))
    data = open_data(config_of(tmp_path), 32)
    name = "xNAME" if how == "renamed" else "NAME"
    wanted = f"val: 100.0 % of its images are also in train: a/0.png = a/{name}".replace(
        "NAME", "0.png"
    )
    assert said(check_contents, data).startswith(wanted)


def test_the_same_names_with_other_contents_are_not_shared(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_images(tmp_path / "train", {"a": 60, "b": 60}, 1)
    write_images(tmp_path / "val", {"a": 60, "b": 60}, 2)
    config = config_of(tmp_path, benchmarks={"again": str(tmp_path / "train")})
    data = open_data(config, 32)
    assert find_shared(data.train, data.val.images).pairs == []
    shutil.copy(tmp_path / "train/a/7.png", tmp_path / "val/a/7.png")
    assert find_shared(data.train, data.val.images) == (1 / 120, ["a/7.png = a/7.png"])
    check_contents(data)  # below 1 % of val: told, and a benchmark may be what it wants
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "val: 0.8 % of its images are also in train: a/7.png = a/7.png"
    assert told[1].startswith("again: 100.0 % of its images are also in train: a/0.png")


def test_benchmarks_are_checked_like_val(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    write_images(tmp_path / "val", {"a": 1, "b": 1})
    write_images(tmp_path / "sketch", {"z": 1})
    config = config_of(tmp_path, benchmarks={"sketch": str(tmp_path / "sketch")})
    assert said(open_data, config, 32).startswith("benchmarks: sketch: ")
    config = config_of(tmp_path, benchmarks={"val": str(tmp_path / "val")})
    assert "benchmarks: val: is the name of a split" in said(open_data, config, 32)
    config = config_of(tmp_path, benchmarks={"sketch": "$NO_SUCH_VARIABLE/x"})
    assert "the variable is not set" in said(open_data, config, 32)


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 1})
    write_images(tmp_path / "val", {"a": 1, "b": 1})
    config = RunConfig(dataset="blobs", data_dir=str(tmp_path), batch_size=4)
    assert "batch_size: 4 is more than the 3 training images" in said(open_data, config, 32)


def test_where_the_data_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("DENSEVIT_DATA", raising=False)
    assert "set $DENSEVIT_DATA to a folder that holds blobs/" in said(
        data_folder, RunConfig(dataset="blobs")
    )
    monkeypatch.setenv("DENSEVIT_DATA", str(tmp_path))
    assert data_folder(RunConfig(dataset="blobs")) == tmp_path / "blobs"
    assert data_folder(RunConfig(dataset="blobs", data_dir="/x")).as_posix() == "/x"
    monkeypatch.delenv("DENSEVIT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder(RunConfig(dataset="shapes")) == tmp_path / "densevit" / "shapes"


def load_rgb(path):
    return read_image(str(path), path.read_bytes).decode()


def gradient():
    """Return an image that differs under every flip and rotation, (30, 20, 3)."""
    rows, columns = np.mgrid[0:30, 0:20]
    return np.stack([rows * 8, columns * 12, rows * 0 + 40], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = gradient()
    # The pixels that a camera stores, so that the EXIF operation restores the upright image (EXIF
    # 2.3, 4.6.4).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(np.asarray(load_rgb(path)), upright)


def broken_exif(path, orientation):
    """Write a JPEG with an orientation, and a resolution of -1 pixels per inch."""
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack(">HHII", 0x011A, 10, 1, 38)  # a signed rational, after the entries
    block = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    block += struct.pack(">ii", -1, 1)
    Image.fromarray(gradient()).save(path, "JPEG", quality=95, exif=block)
    return path


def test_a_broken_rational_of_exif_changes_no_pixel(tmp_path):
    root = write_images(tmp_path / "val", {"a": 1, "b": 1})
    plain, turned = (broken_exif(root / "a" / f"{n}.jfif", n) for n in (1, 6))
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(turned))  # rewrites the resolution, as unsigned
    wanted = np.rot90(np.asarray(load_rgb(plain)), -1)
    assert np.array_equal(np.asarray(load_rgb(turned)), wanted)
    assert examine(listed("val", root), cache=tmp_path).problems == ()


def test_a_check_decodes_images_as_a_run_does_and_names_the_file(tmp_path, monkeypatch):
    root = write_images(tmp_path / "val", {"a": 1, "b": 1})
    content = (root / "a" / "0.png").read_bytes()
    place = content.index(b"IDAT") + 100
    (root / "a" / "0.png").write_bytes(content[:place] + b"damage" + content[place + 6 :])
    with pytest.raises(UserError, match=r"a/0\.png: cannot be read as an image"):
        scan(root, "x").image(0).decode()
    ((name, _),) = examine(listed("val", root), cache=tmp_path).reading.unreadable
    assert name == "a/0.png"

    def broken(*_arguments):
        raise struct.error("unpack requires a buffer of 8 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    told = said(load_rgb, root / "b" / "0.png")
    assert told.endswith("b/0.png: cannot be read as an image: damaged data: unpack requires a "
                         "buffer of 8 bytes")  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jfif", "JPEG"), ("JPE", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000"), ("TGA", "TGA"),
     ("dib", "DIB"), ("pgm", "PPM"), ("qoi", "QOI"), ("WebP", "WEBP")],
)  # fmt: skip
def test_further_still_images_are_read(tmp_path, suffix, kind):
    root = write_images(tmp_path / "val", {"a": 1})
    upright = Image.fromarray(gradient().repeat(2, 0).repeat(2, 1))
    upright.save(root / "a" / f"x.{suffix}", kind)
    found = scan(root, "x")
    assert found.ids == ("a/0.png", f"a/x.{suffix}")
    pixels = np.asarray(found.image(1).decode())
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 8


def test_a_page_description_under_an_images_name_starts_no_program(tmp_path, monkeypatch):
    mark, gs = tmp_path / "mark", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\n: > '{mark}'\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # where it was found before
    folder = tmp_path / "images" / "val" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(gradient()).save(folder / "x.eps")
    for suffix in ("png", "jpg"):
        shutil.copy(folder / "x.eps", folder / f"x.{suffix}")
        assert said(load_rgb, folder / f"x.{suffix}").endswith(
            "cannot be read as an image: is no image"
        )
    with pytest.raises(UnidentifiedImageError):
        html.embedded(folder / "x.png")
    with pytest.raises(ValueError, match=r"x\.png: is no PNG"):
        draw_folders("val", 32, tmp_path)
    assert not mark.exists()
    with pytest.raises(OSError, match="image"):  # as the fake draws nothing
        Image.open(folder / "x.png").load()
    assert mark.exists(), "or this would show nothing"


def test_every_image_is_opened_as_one_of_the_formats_that_are_meant():
    """The list is in `data/image`; a file of ours is a PNG."""
    calls = [
        (file.name, [keyword.arg for keyword in call.keywords])
        for folder in ("densevit", "bench", "slurm")
        for file in (Path(__file__).parents[2] / folder).rglob("*.py")
        if "Image.open" in (text := file.read_text())
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Image.open"
    ]
    assert len(calls) >= 4
    assert [name for name, given in calls if "formats" not in given] == []


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"),
     ("I;16", "png"), ("L", "jpg"), ("P", "gif"), ("RGB", "webp")],
)  # fmt: skip
def test_every_kind_of_picture_becomes_rgb_of_the_same_brightness(tmp_path, mode, suffix):
    grey = Image.fromarray(np.full((20, 20), 128, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 20), 128 * 257, np.uint16))
    else:
        image = grey.convert(mode) if mode == "P" else grey.convert("RGB").convert(mode)
    path = tmp_path / f"x.{suffix}"
    image.save(path)
    got = load_rgb(path)
    assert got.mode == "RGB"
    if mode == "1":  # dithered to black and white
        assert set(np.unique(np.asarray(got))) == {0, 255}
    else:
        assert np.abs(np.asarray(got).astype(int) - 128).max() <= 4


def test_a_truncated_or_foreign_file_names_itself(tmp_path):
    path = tmp_path / "torn.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    assert said(load_rgb, path).startswith(f"{path}: cannot be read as an image: ")
    path.write_text("no picture at all")
    assert said(load_rgb, path).startswith(f"{path}: cannot be read as an image: ")
    assert "gone.jpg: cannot be read" in said(load_rgb, tmp_path / "gone.jpg")


def test_changed_files_are_noticed_and_a_new_benchmark_is_none(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    write_images(tmp_path / "val", {"a": 1, "b": 1})
    before = open_data(config_of(tmp_path), 32).fingerprint()
    extra = config_of(tmp_path, benchmarks={"more": str(tmp_path / "val")})
    check_fingerprint(before, open_data(extra, 32).fingerprint(), tmp_path)
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "9.png")
    after = open_data(config_of(tmp_path), 32).fingerprint()
    text = said(check_fingerprint, before, after, tmp_path)
    assert "the train images have changed" in text
    assert before["train"]["names"] in text
    assert after["train"]["names"] in text
