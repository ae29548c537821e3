"""Image folders: what is read, what is rejected, and the error messages."""

import numpy as np
import pytest
from pictures import write_images
from PIL import Image

from densevit.config.run_config import RunConfig
from densevit.data.datasets import check_fingerprint, data_folder, open_data
from densevit.data.image import read_image
from densevit.data.image_folder import scan
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


def test_missing_and_extra_classes_are_named(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    write_images(tmp_path / "val", {"a": 1, "b": 1})
    assert "val: its classes are not those of train/: lacks c" in said(
        open_data, config_of(tmp_path), 32
    )
    write_images(tmp_path / "val" / "..", {"val/c": 1, "val/d": 1})
    assert "has d besides" in said(open_data, config_of(tmp_path), 32)


def test_benchmarks_are_checked_like_val(tmp_path):
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    write_images(tmp_path / "val", {"a": 1, "b": 1})
    write_images(tmp_path / "sketch", {"a": 1})
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
