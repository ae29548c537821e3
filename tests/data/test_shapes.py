"""The built-in data set: its images, that only shape determines the class, and its cache."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from densevit.data.shapes import dataset
from densevit.data.shapes.dataset import CLASSES, COUNTS, SHIFTED, SPLITS, draw, load


def digest(drawn):
    return hashlib.sha256(drawn.image.tobytes() + drawn.mask.tobytes()).hexdigest()


def run(code, *args, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )


@pytest.fixture
def few(monkeypatch):
    """Draw splits of 30 images, in this process only."""
    for split in SPLITS:
        monkeypatch.setitem(dataset.COUNTS, split, 30)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return {split: load(split, 32, folder) for split in ("train", "val")}


def test_names_and_counts():
    assert len(set(CLASSES)) == 10
    assert ("train", "val", *SHIFTED) == SPLITS
    assert SHIFTED == (
        "shapes-a",
        "shapes-r",
        "shapes-v2",
        "shapes-stylized",
        "shapes-sketch",
    )
    assert {"train": 2400, "val": 600, **dict.fromkeys(SHIFTED, 600)} == COUNTS


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("size", [32, 45, 96, 130])
def test_a_picture_has_its_types_and_a_mask_of_its_class(split, size):
    for index in range(12):
        drawn = draw(split, index, size)
        assert drawn.image.shape == (size, size, 3)
        assert drawn.image.dtype == np.uint8
        assert drawn.mask.shape == (size, size)
        assert drawn.mask.dtype == np.uint8
        assert set(np.unique(drawn.mask)) == {0, drawn.label + 1}
        assert drawn.image.std() > 4


@pytest.mark.parametrize("split", SPLITS)
def test_every_ten_pictures_hold_every_class(split):
    labels = [draw(split, index, 32).label for index in range(60)]
    blocks = [tuple(labels[at : at + 10]) for at in range(0, 60, 10)]
    assert all(sorted(block) == list(range(10)) for block in blocks)
    assert len(set(blocks)) > 1


def test_the_same_key_gives_the_same_bytes_in_any_order_and_process():
    keys = [(split, index) for split in SPLITS for index in (0, 1, 17)]
    here = {key: digest(draw(*key, 40, seed=3)) for key in keys}
    assert {key: digest(draw(*key, 40, seed=3)) for key in reversed(keys)} == here
    code = (
        "import hashlib, sys; from densevit.data.shapes.dataset import draw\n"
        "for split in sys.argv[1:]:\n"
        "  for index in (17, 1, 0):\n"
        "    d = draw(split, index, 40, seed=3)\n"
        "    h = hashlib.sha256(d.image.tobytes() + d.mask.tobytes())\n"
        "    print(split, index, h.hexdigest())\n"
        "assert 'torch' not in sys.modules\n"
    )
    out, err = run(code, *reversed(SPLITS)).communicate(timeout=600)
    assert err == ""
    there = {(s, int(i)): h for s, i, h in map(str.split, out.splitlines())}
    assert there == here


def test_seed_split_and_index_each_change_the_picture():
    key = ("train", 5, 32, 0)
    others = [("val", 5, 32, 0), ("train", 15, 32, 0), ("train", 5, 32, 1)]
    assert len({digest(draw(*k)) for k in [key, *others]}) == 4


def test_a_scene_is_the_same_at_every_size():
    for split in ("train", "shapes-a", "shapes-stylized", "shapes-sketch"):
        for index in range(10):
            small, large = draw(split, index, 32), draw(split, index, 128)
            shrunk = large.image.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
            assert np.abs(shrunk - small.image).mean() < 12
            assert abs((small.mask > 0).mean() - (large.mask > 0).mean()) < 0.03


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("train", 0, 31), "31.* 32 or more"),
        (("test", 0, 32), "'test'.*shapes-sketch"),
        (("val", -1, 32), "index is -1"),
        (("val", 0, 32, -2), "seed is -2"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(args, says, tmp_path):
    with pytest.raises(ValueError, match=says) as caught:
        draw(*args)
    assert "\n" not in str(caught.value)
    if "index" not in says:
        with pytest.raises(ValueError, match=says):
            load(args[0], args[2], tmp_path, *args[3:])
        assert list(tmp_path.iterdir()) == []


def test_masks_fit_the_objects():
    # In this split nothing hides the object, and it is lighter than the background.
    for index in range(20):
        drawn = draw("train", index, 96)
        inside = drawn.mask > 0
        light = drawn.image.mean(axis=2)
        core, out = inside.copy(), inside.copy()
        for axis in (0, 1):
            for step in (-3, 3):
                core &= np.roll(inside, step, axis)
                out |= np.roll(inside, step, axis)
        assert light[core].mean() - light[~out].mean() > 60
        # The border is where the mask has it: a mask moved by 2 pixels separates worse.
        gap = light[inside].mean() - light[~inside].mean()
        for axis in (0, 1):
            for step in (-2, 2):
                moved = np.roll(inside, step, axis)
                assert light[moved].mean() - light[~moved].mean() < gap


def test_an_object_in_the_hard_set_is_smaller_and_partly_hidden_but_there():
    hard = [(draw("shapes-a", i, 32).mask > 0).mean() for i in range(200)]
    plain = [(draw("val", i, 32).mask > 0).mean() for i in range(200)]
    assert np.mean(hard) < 0.7 * np.mean(plain)
    assert all(share > 0.02 for share in hard)


def test_sketches_are_dark_lines_on_light_paper():
    for index in range(20):
        light = draw("shapes-sketch", index, 96).image.mean(axis=2)
        assert np.median(light) > 210
        assert 0.01 < (light < 110).mean() < 0.25


def test_areas_do_not_tell_the_class(stored):
    train = stored["train"]
    areas = (train.masks > 0).mean(axis=(1, 2))
    means = [areas[train.labels == label].mean() for label in range(10)]
    assert np.min(means) > 0.2  # NaN of a class without images stays NaN
    assert np.max(means) / np.min(means) < 1.1


def histograms(images):
    cubes = (images // 64).astype(int) @ [16, 4, 1]
    joint = [np.bincount(cube.ravel(), minlength=64) for cube in cubes]
    channels = [
        np.concatenate([np.bincount(image[..., c].ravel() // 16, minlength=16) for c in range(3)])
        for image in images
    ]
    return np.sqrt(np.concatenate([joint, channels], axis=1) / images[0, ..., 0].size)


def test_colors_do_not_tell_the_class(stored, tmp_path):
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    # Three draws of the validation split: with one of 600 images the accuracy is uncertain by 1.4
    # points.
    vals = [stored["val"], load("val", 32, tmp_path, seed=1), load("val", 32, tmp_path, seed=2)]
    x = histograms(stored["train"].images)
    y = histograms(np.concatenate([val.images for val in vals]))
    labels = np.concatenate([val.labels for val in vals])
    for model in (
        LogisticRegression(C=10, max_iter=300),
        RandomForestClassifier(100, random_state=0),
    ):
        accuracy = model.fit(x, stored["train"].labels).score(y, labels)
        assert accuracy < 0.17, model


def test_shape_does_tell_the_class(stored):
    # The counterpart of the test above, which a data set of noise would pass.
    from sklearn.neighbors import KNeighborsClassifier

    def features(split):
        return (split.masks > 0).reshape(len(split.masks), -1).astype(np.float32)

    train, val = stored["train"], stored["val"]
    model = KNeighborsClassifier(5).fit(features(train), train.labels)
    assert model.score(features(val), val.labels) > 0.6


def test_a_loaded_split_is_what_draw_gives_and_is_read_only(few, tmp_path):
    split = load("shapes-r", 33, tmp_path, seed=2)
    assert split.images.shape == (30, 33, 33, 3)
    assert split.masks.shape == (30, 33, 33)
    assert split.labels.dtype == np.int64
    for index in (0, 29):
        drawn = draw("shapes-r", index, 33, seed=2)
        assert np.array_equal(split.images[index], drawn.image)
        assert np.array_equal(split.masks[index], drawn.mask)
        assert split.labels[index] == drawn.label
    assert isinstance(split.images, np.memmap)
    for array in (split.images, split.masks, split.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(FrozenInstanceError):
        split.images = None
    assert (tmp_path / "v1-33px-seed2" / "shapes-r" / "images.npy").is_file()


def test_what_is_stored_is_not_drawn_again(few, tmp_path, monkeypatch):
    first = load("val", 32, tmp_path)
    monkeypatch.setattr(dataset, "draw", None)
    assert np.array_equal(load("val", 32, tmp_path).images, first.images)


def test_four_processes_at_once_draw_once_and_read_the_same(tmp_path):
    code = (
        "import hashlib, sys; from pathlib import Path; from densevit.data.shapes import dataset as shapes\n"
        "shapes.COUNTS['val'] = 60\n"
        "drawn, plain = [], shapes.draw\n"
        "shapes.draw = lambda *a, **k: drawn.append(a) or plain(*a, **k)\n"
        "sys.stdin.readline()\n"
        "s = shapes.load('val', 32, Path(sys.argv[1]))\n"
        "h = hashlib.sha256(s.images.tobytes() + s.masks.tobytes() + s.labels.tobytes())\n"
        "print(len(drawn), h.hexdigest())\n"
    )
    four = [run(code, tmp_path, stdin=subprocess.PIPE) for _ in range(4)]
    for process in four:  # All start before the first one may continue.
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=600) for process in four]
    assert [err for _, err in results] == [""] * 4
    counts, hashes = zip(*(out.split() for out, _ in results), strict=True)
    assert sorted(map(int, counts)) == [0, 0, 0, 60]
    assert len(set(hashes)) == 1
    home = tmp_path / "v1-32px-seed0"
    assert sorted(p.name for p in home.iterdir()) == ["val", "val.lock"]


def test_what_a_killed_process_left_is_not_used_and_goes(few, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from densevit.data.shapes import dataset as shapes\n"
        "plain = shapes.draw\n"
        "def draw(split, index, *a, **k):\n"
        "  if index == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
        "  return plain(split, index, *a, **k)\n"
        "shapes.draw = draw\n"
        "shapes.load('val', 32, Path(sys.argv[1]))\n"
    )
    process = run(code, tmp_path)
    process.communicate(timeout=600)
    assert process.returncode == -signal.SIGKILL
    home = tmp_path / "v1-32px-seed0"
    assert len(list(home.glob(".val.tmp-*"))) == 1
    assert not (home / "val").exists()
    split = load("val", 32, tmp_path)
    assert all(np.array_equal(split.images[i], draw("val", i, 32).image) for i in range(30))
    assert sorted(p.name for p in home.iterdir()) == ["val", "val.lock"]


def test_an_unfinished_folder_of_another_machine_stays_until_it_is_old(few, tmp_path):
    home = tmp_path / "v1-32px-seed0"
    fresh, old = home / ".val.tmp-elsewhere@1", home / ".val.tmp-elsewhere@2"
    for folder in (fresh, old):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 7 * 3600,) * 2)
    load("val", 32, tmp_path)
    assert fresh.is_dir()
    assert not old.exists()


def test_a_draw_that_fails_leaves_nothing(few, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "draw", broken)
        with pytest.raises(OSError, match="no space"):
            load("val", 32, tmp_path)
    home = tmp_path / "v1-32px-seed0"
    assert [p.name for p in home.iterdir()] == ["val.lock"]
    assert len(load("val", 32, tmp_path).labels) == 30


def test_another_machine_that_was_first_wins(few, tmp_path, monkeypatch):
    # As where locks have no effect: another process creates the folder while this one draws.
    other = tmp_path / "other"
    load("val", 32, other)
    home = tmp_path / "v1-32px-seed0"
    real = dataset._write

    def slow(folder, *args):
        real(folder, *args)
        (other / home.name / "val").rename(home / "val")
        (home / "val" / "theirs").touch()

    monkeypatch.setattr(dataset, "_write", slow)
    assert len(load("val", 32, tmp_path).labels) == 30
    assert (home / "val" / "theirs").is_file()
    assert sorted(p.name for p in home.iterdir()) == ["val", "val.lock"]


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
@pytest.mark.parametrize("harm", ["gone", "cut", "empty", "other"])
def test_damaged_files_are_told(few, tmp_path, name, harm):
    load("val", 32, tmp_path)
    path = tmp_path / "v1-32px-seed0" / "val" / name
    if harm == "gone":
        path.unlink()
    elif harm == "other":
        np.save(path, np.zeros(3, dtype=np.int64))
    else:
        os.truncate(path, 150 if harm == "cut" else 0)
    with pytest.raises(ValueError, match=f"{name}.*remove") as caught:
        load("val", 32, tmp_path)
    assert "\n" not in str(caught.value)
