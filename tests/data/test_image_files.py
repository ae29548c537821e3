"""One rule for what is an image of a data set: in folders, in archives and in checks."""

import io
import os
import shutil
import tarfile
import time

import pytest
from archives import colored

from densevit.data.archives import open_tar
from densevit.data.check_folders import examine, listed
from densevit.data.image_files import HIDDEN, NO_CLASS, NO_IMAGE, SAME, reason_to_skip
from densevit.data.image_folder import scan
from densevit.data.prepare import _targets
from densevit.data.tar_files import is_tar
from densevit.utils.errors import UserError

IMAGES = ("cat/1.png", "cat/deep/2.JFIF", "cat/deep/3.jpe", "dog/1.TIFF", "dog/4.avif")
CLUTTER = {
    HIDDEN: ("._x.jpg", ".ipynb_checkpoints/x.png", "cat/.ipynb_checkpoints/x.png", "cat/._1.png",
             "cat/@eaDir/1.png/thumb.jpg", "cat/Thumbs.db", "dog/.thumbnails/1.png",
             "@eaDir/cat/1.png", "__MACOSX/cat/._1.png", "lost+found/1.png"),
    NO_IMAGE: ("README.txt", "cat/notes.txt", "dog/page.pdf", "dog/figure.eps"),
    NO_CLASS: ("outside.png",),
}  # fmt: skip


def cluttered(root):
    for number, path in enumerate([*IMAGES, *(p for paths in CLUTTER.values() for p in paths)]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(colored(number))
    return root


def packed(root, target, mode="w", inside=""):
    with tarfile.open(target, mode) as tar:
        for path in sorted(root.rglob("*")):
            if not path.is_dir():
                tar.add(path, arcname=f"{inside}{path.relative_to(root)}")
    return target


@pytest.mark.parametrize("form", ["folder", "tar", "around", "dots", "gz", "xz"])
def test_folders_archives_and_checks_list_the_same_images(tmp_path, monkeypatch, form):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = cluttered(tmp_path / "val")
    if form == "folder":
        found, path = scan(root, "x"), root
        assert {s.reason for s in found.skipped} == {HIDDEN, NO_IMAGE, NO_CLASS}
        assert {s.path for s in found.skipped if s.reason == NO_IMAGE} == set(CLUTTER[NO_IMAGE])
    else:
        inside = {"around": "val/", "dots": "./"}.get(form, "")
        if form == "around":  # then a file beside the class folders would be one of a class
            (root / "outside.png").unlink()
        ending = f".{form}" if form in ("gz", "xz") else ""
        path = packed(root, tmp_path / f"x.tar{ending}", f"w:{ending[1:]}", inside)
        found = open_tar(path, "x")
    assert found.classes == ("cat", "dog")
    assert found.ids == IMAGES
    assert found.labels == (0, 0, 0, 1, 1)
    assert [found.content(index) for index in range(5)] == [colored(n) for n in range(5)]
    assert found.fingerprint() == scan(root, "x").fingerprint()
    listing = listed("val", path)
    assert (listing.images.ids, listing.problems) == (IMAGES, [])
    notes = "\n".join(examine(listing, hashing=False).notes)
    assert f"skipped, {HIDDEN}: " in notes
    assert f"skipped, {NO_IMAGE}: " in notes


def test_preparing_an_archive_follows_the_same_rule():
    target_of = _targets("imagenet-r", {})
    for path in ("imagenet-r/n01443537/@eaDir/art_0.jpg", "x/.ipynb_checkpoints/art_0.jpg"):
        assert reason_to_skip(path) == HIDDEN
        assert target_of(path) == ""
    assert target_of("imagenet-r/n01443537/art_0.jfif") == "n01443537/art_0.jfif"


def test_each_real_file_is_listed_once_a_class(tmp_path):
    root = tmp_path / "train"
    for path in ("cat/1.png", "cat/more/2.png", "dog/1.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(colored(1))
    (root / "cat" / "cat").symlink_to(root / "cat")  # `ln -s` typed twice
    (root / "cat" / "again").symlink_to(root / "cat" / "more")
    (root / "cat" / "all").symlink_to(root)  # would add the dogs
    (root / "cat" / "9.png").symlink_to(root / "cat" / "1.png")
    (root / "cat" / "0.png").symlink_to(root / "dog" / "1.png")  # another class may have it, too
    (root / "loop").symlink_to(root)
    found = scan(root, "x")
    assert found.classes == ("cat", "dog")
    assert found.ids == ("cat/0.png", "cat/1.png", "cat/more/2.png", "dog/1.png")
    same = {each.path for each in found.skipped if each.reason == SAME}
    assert same == {"cat/cat/", "cat/again/", "cat/all/", "cat/9.png", "loop/"}


def test_links_in_a_tar_are_the_files_they_lead_to(tmp_path):
    root = tmp_path / "x"
    for path in ("cat/1.png", "dog/2.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(colored(int(path[4])))
    os.link(root / "cat" / "1.png", root / "dog" / "1.png")
    (root / "cat" / "5.png").symlink_to("1.png")
    (root / "cat" / "6.png").symlink_to("../dog/2.png")
    (root / "cat" / "7.png").symlink_to("gone.png")
    found = open_tar(packed(root, tmp_path / "x.tar"), "x")
    assert found.ids == ("cat/1.png", "cat/6.png", "dog/1.png", "dog/2.png")
    assert [found.content(index) for index in range(4)] == [colored(n) for n in (1, 2, 1, 2)]
    assert [each.path for each in found.skipped] == ["cat/7.png", "cat/5.png"]


def test_a_tar_of_class_tars_and_a_folder_of_them(tmp_path):
    """ImageNet's training images are published as a tar of tars."""
    many = tmp_path / "tars"
    many.mkdir()
    for name in ("n02", "n01"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / f"{name}_1.JPEG").write_bytes(colored(int(name[1:])))
        packed(tmp_path / name, many / f"{name}.tar")
    (many / "._n01.tar").write_bytes(b"a resource fork")
    (many / ".ipynb_checkpoints").mkdir()
    assert is_tar(many)
    for path in (many, packed(many, tmp_path / "all.tar")):
        found = open_tar(path, "x")
        assert found.classes == ("n01", "n02")
        assert found.ids == ("n01/deep/n01_1.JPEG", "n02/deep/n02_1.JPEG")
        assert [found.content(index) for index in range(2)] == [colored(1), colored(2)]
        assert "._n01.tar" in [each.path for each in found.skipped if each.reason == HIDDEN]


def test_a_compressed_tar_is_unpacked_once_and_a_damaged_one_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = packed(cluttered(tmp_path / "val"), tmp_path / "val.tgz", "w:gz")
    with caplog.at_level("INFO", "densevit"):
        open_tar(path, "x")
        open_tar(path, "x")
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"{path}: is compressed"
    ]
    content = path.read_bytes()
    archives = tmp_path / "cache/densevit/archives"
    (used,) = archives.glob("*.tar")
    for days, name in ((59, "recent"), (61, "unused")):
        for file in (archives / f"{name}.tar", archives / f"{name}.lock"):
            file.write_bytes(b"")
            os.utime(file, (time.time() - days * 86400,) * 2)
    os.utime(used, (1, 1))
    open_tar(path, "x")  # which counts as use
    again = shutil.copy(path, tmp_path / "again.tgz")
    open_tar(again, "x")
    left = {each.name for each in archives.iterdir()} - {used.name, used.with_suffix(".lock").name}
    assert used.exists()
    assert {name.partition("-")[0] for name in left} == {"recent.tar", "recent.lock", "again"}
    for file in [*archives.glob("recent*"), *archives.glob("again*")]:
        file.unlink()
    for wrong in (content[:-200], content[:50] + b"wrong" + content[55:]):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"^x: .*val\.tgz: cannot be read as a tar of images"):
            open_tar(path, "x")
    assert [*archives.glob("*.tar")] == [used]
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Full)
    with pytest.raises(UserError, match="has no room for the plain archive"):
        open_tar(path, "x")


class _Full:
    free = 0


def test_a_name_that_no_results_file_can_hold_is_found_at_the_start(tmp_path):
    root = tmp_path / "val"
    for name in (b"a", b"b"):
        (root / name.decode()).mkdir(parents=True)
        (root / name.decode() / "fine.png").write_bytes(colored(0))
    with open(os.fsencode(root) + b"/b/caf\xe9.png", "wb") as file:  # noqa: PTH123, bytes
        file.write(colored(1))
    told = f"{root}: b/caf\\xe9.png: its name is not UTF-8"
    with pytest.raises(UserError) as raised:
        scan(root, "here")
    assert str(raised.value).startswith(f"here: {told}")
    assert [p.startswith(told) for p in listed("val", root).problems] == [True]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a/1.png", "b/caf\udce9.png"):
            entry = tarfile.TarInfo(name)
            entry.size = len(colored(1))
            tar.addfile(entry, io.BytesIO(colored(1)))
    with pytest.raises(UserError, match=r"b/caf\\xe9\.png: its name is not UTF-8"):
        open_tar(tmp_path / "x.tar", "x")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = cluttered(tmp_path / "val")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("/deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="cat/deep: cannot be read: Permission denied"):
        scan(root, "x")
