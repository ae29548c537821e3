"""Images are recognized by their labels and the content of their files, not by names alone."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import write_images

from densevit.data import fingerprint as fingerprints
from densevit.data.fingerprint import differences, fingerprint
from densevit.data.open_benchmark import open_benchmark, open_images

OUTPUTS = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "one", dict.fromkeys(OUTPUTS, 2), 1)
    return tmp_path / "one"


def test_other_images_under_the_same_names_are_told_apart(tmp_path, folder):
    other = shutil.copytree(folder, tmp_path / "other")
    again = fingerprint(open_images(other, "x"))
    assert again == fingerprint(open_images(folder, "x")), "a place is no content"
    (other / "red").rename(tmp_path / "held")
    (other / "blue").rename(other / "red")
    (tmp_path / "held").rename(other / "blue")
    swapped = fingerprint(open_images(other, "x"))
    assert differences(again, swapped) == {"content": again["content"]}


def test_an_archive_has_the_fingerprint_of_its_folder(tmp_path, folder):
    with tarfile.open(tmp_path / "one.tar", "w") as file:
        for each in OUTPUTS:
            file.add(folder / each, each)
    assert fingerprint(open_images(tmp_path / "one.tar", "x")) == fingerprint(
        open_images(folder, "x")
    )


def test_the_mapping_of_folders_to_classes_is_part_of_it(tmp_path, folder):
    found = []
    for name, text in (
        ("a", "blue blue\ngreen green\nred red"),
        ("b", "blue red\ngreen green\nred blue"),
    ):
        (tmp_path / name).write_text(text)
        given = {"path": str(folder), "classes": str(tmp_path / name)}
        found.append(fingerprint(open_benchmark("mine", given, OUTPUTS, "x")))
    assert differences(*found).keys() == {"labels"}


def test_a_sample_is_read_and_only_when_a_file_has_changed(folder, monkeypatch):
    monkeypatch.setattr(fingerprints, "MOST_READ", 3)
    images, read = open_images(folder, "x"), []
    ends = fingerprints._ends
    monkeypatch.setattr(fingerprints, "_ends", lambda i, n: read.append(n) or ends(i, n))
    first = fingerprint(images)
    assert (fingerprint(images), read) == (first, [0, 2, 4])
    Path(folder / images.ids[2]).write_bytes(b"x")
    assert differences(first, fingerprint(images)).keys() == {"content"}


def test_labels_of_several_classes_and_older_records(folder):
    images = open_images(folder, "x")
    record = fingerprint(images)
    assert differences({"classes": 3, "images": 6}, record) == {}
    assert differences({**record, "images": 7}, record) == {"images": 7}
    assert np.unique(images.labels).tolist() == [0, 1, 2]
