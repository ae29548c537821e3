"""`densevit data check` on planted damage, in folders with the layout of the real archives."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from densevit.cli.data import add_data
from densevit.cli.parser import Parser, run_command
from densevit.data import check_files, check_folders, imagenet
from densevit.data.archives import open_tar
from densevit.data.check_folders import (
    affordable_reading,
    examine,
    known_reading,
    listed,
    unreadable,
)
from densevit.data.check_report import compare, index_map
from densevit.data.datasets import DrawnImages
from densevit.data.image_folder import FolderImages, scan
from densevit.data.open_benchmark import open_benchmark
from densevit.utils.errors import UserError

A, ALL = imagenet.wnids("imagenet_a"), imagenet.wnids()


def jpeg(number=0, size=(8, 8), mode="RGB"):
    """Return a JPEG whose bytes, not its pixels, depend on a number: a comment after its first
    marker."""
    buffer = io.BytesIO()
    Image.new(mode, size, 90 if mode == "L" else None).save(buffer, "JPEG")
    content = buffer.getvalue()
    return content[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + content[2:]


def lay(root, folders, file="0.jpg"):
    plain = jpeg()
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        content = plain[:6] + number.to_bytes(4, "big") + plain[10:]
        (root / folder / file).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def v2(tmp_path_factory):
    return lay(tmp_path_factory.mktemp("v2"), [str(n) for n in range(1000)])


def known_problems(images):
    return unreadable(images, known_reading(images))


def quick_problems(images):
    """Return what the ends of the files tell: no set is small enough for more."""
    return unreadable(images, affordable_reading(images, 0))


def found_in(name, root, **options):
    return examine(listed(name, root), **options)


def run(*words):
    parser = Parser("densevit")
    add_data(parser.add_subparsers(dest="command", required=True))
    try:
        return run_command("densevit", parser, ["data", *map(str, words)])
    except SystemExit as stopped:
        return stopped.code


def test_a_benchmark_as_its_archive_has_it(tmp_path):
    root = lay(tmp_path / "a", A)
    (root / "README.txt").write_text("as in the archive")
    found = found_in("imagenet-a", root)
    assert found.problems == ()
    assert found.notes == (
        "incomplete: 200 of 7,500 published images", "skipped, not an image by their names: README.txt"
    )  # fmt: skip
    # A stingray is output 6 of a network trained on ImageNet, an acorn 988.
    assert index_map(found.listing) == [
        "n01498041 is 6 of ImageNet",
        "n12267677 is 988 of ImageNet",
    ]
    assert found.listing.images == scan(root, "x")
    assert found.reading.sizes == [(8, 8)] * 3


@pytest.mark.parametrize(
    ("name", "images"), [("train", 1_281_167), ("val", 50_000), ("more", None)]
)
def test_a_set_of_imagenets_classes_has_the_published_number_of_images(tmp_path, name, images):
    listing = check_folders.Listing(name, FolderImages(tmp_path, ALL, (), ()))
    assert examine(listing).expected == images


def test_folders_that_are_links_are_looked_into_as_a_run_does(tmp_path):
    elsewhere = lay(tmp_path / "elsewhere", ["b", "more"])
    root = lay(tmp_path / "val", ["a"])
    (root / "b").symlink_to(elsewhere / "b")
    (root / "a" / "deep").symlink_to(elsewhere / "more")
    listing = listed("val", root)
    assert listing.images == scan(root, "x")
    assert listing.images.ids == ("a/0.jpg", "a/deep/0.jpg", "b/0.jpg")
    assert (listing.empty, listing.problems) == ((), [])


def test_class_folders_that_are_not_the_benchmarks(tmp_path):
    root = lay(tmp_path / "a", [*A[1:], "n99999999"])
    (root / A[5] / "0.jpg").unlink()
    misnamed, empty = found_in("imagenet-a", root).problems
    assert (
        "must be 200 WordNet ids, as in n01498041/0.000116_digital clock_0.865662.jpg" in misnamed
    )
    assert "https://github.com/hendrycks/natural-adv-examples" in misnamed
    assert "found 200; lacks n01498041 and has n99999999 besides" in misnamed
    assert empty == f"class folders without an image: {A[5]}"


def test_numbers_are_refused_where_they_mean_nothing(tmp_path, v2):
    (told,) = found_in("imagenet-a", lay(tmp_path / "a", [str(n) for n in range(200)])).problems
    assert "folder numbers do not identify classes" in told
    (told,) = found_in("imagenet", v2).problems
    assert "folder numbers do not identify classes" in told
    found = found_in("imagenet-v2", v2)
    assert found.problems == ()
    # Folder 10 is second in a listing; a tench is output 0 and a toilet tissue 999.
    assert index_map(found.listing) == [
        "0 is 0 of ImageNet (n01440764)", "999 is 999 of ImageNet (n15075141)"
    ]  # fmt: skip
    (told,) = found_in("imagenet-v2", lay(tmp_path / "b", [str(n) for n in range(999)])).problems
    assert "must be the numbers 0 to 999" in told
    assert "lacks 999" in told


def test_imagenet_c_is_listed_as_a_run_opens_it(tmp_path, monkeypatch):
    few = ALL[:10]  # of its 1000 classes, whose names are all checked
    for module in ("open_benchmark", "check_folders", "known_benchmarks"):
        monkeypatch.setattr(f"densevit.data.{module}.expected_classes", lambda _: few)
    for severity in "12345":
        lay(tmp_path / "c" / "blur" / "zoom_blur" / severity, few)
    listing = listed("imagenet-c", tmp_path / "c")
    opened = open_benchmark("imagenet-c", str(tmp_path / "c"), ALL, "x").images
    assert listing.problems == []
    assert (listing.images.ids, listing.images.labels) == (opened.ids, opened.labels)
    shutil.rmtree(tmp_path / "c" / "blur" / "zoom_blur" / "4")
    shutil.rmtree(tmp_path / "c" / "blur" / "zoom_blur" / "3" / ALL[7])
    told = listed("imagenet-c", tmp_path / "c").problems
    assert len(told) == 2
    assert told[0].startswith("blur/zoom_blur/3: its class folders")
    assert told[1].startswith("blur/zoom_blur/4: no such folder")


def test_other_layouts(tmp_path):
    found = found_in("cue-conflict", lay(tmp_path / "cue", imagenet.CATEGORIES))
    assert found.problems == ()
    assert index_map(found.listing)[0] == "airplane is 404 of ImageNet"
    (tmp_path / "none").mkdir()
    assert found_in("val", tmp_path / "none").problems == ("holds no class folders",)
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg())
    (told,) = found_in("val", flat).problems
    assert "no label file lies in it" in told
    labels = "ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 111 108 230 366\n"
    (flat / "LOC_val_solution.csv").write_text(labels)
    assert len(listed("val", flat).images) == 1


def noise(suffix, size=64, mode="RGB"):
    """Return the bytes of an image of noise."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (size, size, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, suffix)
    return buffer.getvalue()


DAMAGED = {
    "torn.jpg": noise("JPEG")[:-700],
    "torn.png": noise("PNG")[:-700],
    "half.webp": noise("WEBP")[:20],
    "empty.jpg": b"",
    "page.jpg": b"<html>not found</html>",
    # The result of a failed copy; Pillow decodes it, gray from there on.
    "zeros.jpg": noise("JPEG")[:2000] + bytes(5000),
    "zeros.png": noise("PNG")[:2000] + bytes(20000),
}


@pytest.mark.parametrize("hashing", [True, False])
def test_damaged_files_are_named(tmp_path, hashing):
    root = lay(tmp_path / "val", ["a", "b"])
    for name, content in DAMAGED.items():
        (root / "a" / name).write_bytes(content)
    (root / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    whole = {"zeros_after.jpg": noise("JPEG") + bytes(100), "more_after.png": noise("PNG") + b"more",
             "text_after.jpg": noise("JPEG") + b"\r\n"}  # fmt: skip
    for name, content in whole.items():
        (root / "b" / name).write_bytes(content)
    found = found_in("val", root, hashing=hashing)
    told = dict(found.reading.unreadable)
    assert told.keys() == {f"a/{name}" for name in [*DAMAGED, "gone.jpg"]}
    assert told["a/empty.jpg"] == "is empty"
    assert told["a/page.jpg"] == "is no image"
    assert told["a/gone.jpg"] == "No such file or directory"
    assert told["a/torn.jpg"] == told["a/zeros.jpg"] == "is truncated: its end is missing"
    assert len(found.problems) == 1
    # A file that a run can decode is no problem, whatever follows the image.
    assert found.reading.odd == ["b/more_after.png", "b/text_after.jpg"]
    images = scan(root, "x")
    for name in whole:
        images.image(images.ids.index(f"b/{name}")).decode()


def test_unusual_pictures_are_noted_with_their_conversion(tmp_path):
    root = lay(tmp_path / "val", ["a", "b"])
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(root / "a" / "deep.png")
    (root / "a" / "print.jpg").write_bytes(jpeg(1, (5, 30), "CMYK"))
    clear = Image.new("P", (9, 9))
    clear.save(root / "a" / "clear.png", transparency=0)
    (root / "a" / "grey.jpg").write_bytes(jpeg(2, (300, 200), "L"))
    found = found_in("val", root)
    assert found.problems == ()
    assert sorted(found.notes) == [
        "1 images in CMYK, converted to RGB without a color profile: a/print.jpg",
        "1 images of 16 bits, divided by 257: a/deep.png",
        "1 images with transparency, which is dropped: a/clear.png",
    ]
    # By area: 64, 64, 81, 81, 150, 60,000.
    assert found.reading.sizes == [(8, 8), (9, 9), (300, 200)]


def test_each_copy_of_an_image_is_told_with_the_first(tmp_path):
    root = lay(tmp_path / "val", ["a", "b"])
    for copy in ("b/1.jpg", "b/2.jpg"):
        shutil.copy(root / "a" / "0.jpg", root / copy)
    told = "the same content: a/0.jpg = b/1.jpg, a/0.jpg = b/2.jpg"
    assert found_in("val", root).notes == (told,)


def test_the_same_picture_in_two_sets(tmp_path):
    train, val = lay(tmp_path / "train", ["a", "b"]), tmp_path / "val"
    (train / "b" / "twin.jpg").write_bytes((train / "a" / "0.jpg").read_bytes())
    lay(val, ["b", "a", "c"], "other.jpg")  # b has the bytes that a in train has
    sets = [found_in("train", train), found_in("val", val)]
    assert sets[0].problems == sets[1].problems == ()
    assert sets[0].notes == ("the same content: a/0.jpg = b/twin.jpg",)
    problems, notes = compare(sets)
    assert problems == [
        "val: its class folders are not those of train: has c besides",
        "train and val share 2 images: b/0.jpg = a/other.jpg, b/twin.jpg = b/other.jpg",
    ]
    assert notes == []
    problems, (note,) = compare([found_in("x", val), found_in("y", val)])
    assert problems == []
    assert note.startswith("x and y share 3 images: a/other.jpg = a/other.jpg, ")
    unhashed = [found_in("train", train, hashing=False, cache=tmp_path / "other"),
                found_in("val", val, hashing=False, cache=tmp_path / "other")]  # fmt: skip
    assert len(compare(unhashed)[0]) == 1


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    root = lay(tmp_path / "val", ["a", "b"])
    (root / "a" / "torn.jpg").write_bytes(noise("JPEG")[:-700])
    images = scan(root, "x")
    line = f"{root}: a/torn.jpg: "
    with monkeypatch.context() as patch:
        patch.setattr(
            check_files, "files_stamp", lambda images: pytest.fail("a stat without a check")
        )
        assert known_problems(images) == []
    assert [told.startswith(line) for told in quick_problems(images)] == [True]
    # The quick check compared no contents, so they are read now, but not again.
    assert not found_in("val", root).reading.cached
    with monkeypatch.context() as patch:
        patch.setattr(check_files, "_check_file", lambda *_: pytest.fail("read again"))
        again = found_in("val", root)
        assert again.reading.cached
        assert len(list(again.reading.contents(images.ids))) == 2
        assert len(again.problems) == 1
        assert quick_problems(images) == known_problems(images) != []
    os.utime(root / "b" / "0.jpg", ns=(1, 1))
    assert known_problems(images) == []
    (root / "a" / "torn.jpg").write_bytes(noise("JPEG"))
    assert quick_problems(images) == []
    (entry,) = (tmp_path / "cache" / "densevit" / "data-checks").iterdir()
    entry.write_text("{")
    assert known_problems(images) == []
    assert not found_in("val", root).reading.cached


def test_a_run_reads_no_large_set_and_no_drawn_one(tmp_path, monkeypatch):
    root = lay(tmp_path / "val", ["a", "b"])
    (root / "a" / "0.jpg").write_bytes(b"")
    monkeypatch.setattr(check_folders, "MOST_IMAGES", 1)
    assert quick_problems(scan(root, "x")) == []
    found_in("val", root)
    assert quick_problems(scan(root, "x")) == [f"{root}: a/0.jpg: is empty"]
    assert quick_problems(DrawnImages("shapes", "val", 32, tmp_path)) == []


def test_splits_are_found_in_the_folder_that_a_run_is_given(tmp_path, capsys):
    lay(tmp_path / "train", ["a", "b"])
    lay(tmp_path / "inner", ["c", "d"])
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(tmp_path / "inner", arcname="")
    assert run("check", f"train={tmp_path}", f"val={tmp_path}") == 1
    told = capsys.readouterr().out
    for line in (f"train: {tmp_path / 'train'}", "outputs: a is 0; b is 1",
                 f"val: {tmp_path / 'val.tar'}", "share 2 images"):  # fmt: skip
        assert line in told
    assert run("check", f"mine={tmp_path / 'train'}") == 0


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_run_decodes_a_set_that_it_can_afford(tmp_path, form):
    root = lay(tmp_path / "val", ["a", "b"])
    content = bytearray(noise("PNG"))
    content[len(content) // 2] ^= 255  # both ends are as they were
    (root / "a" / "bad.png").write_bytes(content)
    images = scan(root, "x")
    size = sum(file.stat().st_size for file in root.rglob("*.*"))
    if form == "tar":
        with tarfile.open(tmp_path / "val.tar", "w") as tar:
            tar.add(root, arcname="")
        images = open_tar(tmp_path / "val.tar", "x")
    assert unreadable(images, affordable_reading(images, size - 1)) == []
    (told,) = unreadable(images, affordable_reading(images, size))
    assert told.startswith(f"{images.root}: a/bad.png: broken")
    assert unreadable(images, affordable_reading(images, 0)) == [told], "it is known now"


def test_several_processes_find_the_same(tmp_path, monkeypatch):
    root = lay(tmp_path / "val", "abcdefghij")
    (root / "h" / "0.jpg").write_bytes(b"")
    monkeypatch.setattr(check_files, "_CHUNK", 3)
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(root, arcname="")
    for path in (root, tmp_path / "val.tar"):
        alone, together = (
            found_in("val", path, jobs=jobs, cache=tmp_path / str(jobs)).reading for jobs in (1, 2)
        )
        assert alone == together
        assert alone.unreadable == [("h/0.jpg", "is empty")]


def test_a_tar_is_checked_as_it_lies(tmp_path, monkeypatch):
    root = lay(tmp_path / "val", ["a", "b"])
    (root / "a" / "torn.jpg").write_bytes(noise("JPEG")[:-700])
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(root, arcname="")
    found = found_in("val", tmp_path / "val.tar")
    assert [name for name, _ in found.reading.unreadable] == ["a/torn.jpg"]
    assert [told.partition(": ")[2][:10] for told in known_problems(found.listing.images)] == [
        "a/torn.jpg"
    ]
    (tmp_path / "val.tar").write_bytes(b"no tar")
    assert "cannot be read as a tar" in found_in("val", tmp_path / "val.tar").problems[0]


def test_names_of_classes_and_files_do_not_act_on_the_terminal(tmp_path, capsys):
    names = ["a\x1b]0;x\x07\u202e\r\n\x9b", "b<script>\udc9b", "=c"]
    lay(tmp_path / "set", names, "\x1b[2J.jpg")
    (tmp_path / "set" / names[0] / "\x1b[2K.jpg").write_bytes(b"no image")
    for more in ([], ["--json"]):
        assert run("check", f"val={tmp_path / 'set'}", *more) == 1
        read = capsys.readouterr()
        assert "b<script>" in read.out
        assert not set(read.out + read.err) & set("\x1b\x07\x9b\r\u202e\udc9b")


def test_exit_codes_and_words(tmp_path, capsys, monkeypatch):
    lay(tmp_path / "train", ["a", "b"])
    lay(tmp_path / "val", ["a", "b"], "1.jpg")
    assert run("check", f"val={tmp_path / 'val'}") == 0
    shown = capsys.readouterr().out
    assert "2 images, 2 class folders\n" in shown
    assert "images per class: 1 (a) to 1 (b)" in shown
    assert "outputs: a is 0; b is 1" in shown
    assert shown.endswith("no problems\n")
    monkeypatch.setenv("DENSEVIT_DATA", str(tmp_path))
    assert run("check", "train", "val", "--json") == 1
    record = json.loads(capsys.readouterr().out)
    assert [each["cached"] for each in record["sets"]] == [False, True]
    assert record["problems"] == ["train and val share 2 images: a/0.jpg = a/1.jpg, "
                                  "b/0.jpg = b/1.jpg"]  # fmt: skip
    assert run("check", f"imagenet_a={tmp_path / 'val'}", "--no-hash") == 0
    assert "did you mean imagenet-a?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["val=/no/such"], "val: /no/such: no such folder or file (expected CLASS/image.jpg)"),
        (["val="], "'val=': must be NAME=PATH"),
        (["val=/", "val=/"], "val: is given twice"),
        (["imagenet-a"], "imagenet-a: $DENSEVIT_DATA/imagenet-a: the variable is not set"),
        (["val=/", "--jobs", "0"], "argument --jobs: '0' must be a whole number"),
    ],
)
def test_a_mistake_is_one_line(capsys, monkeypatch, words, told):
    monkeypatch.delenv("DENSEVIT_DATA", raising=False)
    assert run("check", *words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert told in shown.err


@pytest.mark.parametrize("name", ["val", "imagenet-a", "imagenet-c"])
def test_a_file_that_is_no_data_set_is_a_mistake(tmp_path, capsys, name):
    file = tmp_path / "list.txt"
    file.write_text("a/0.jpg\n")
    assert run("check", f"{name}={file}") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"densevit: {name}: {file}: is a file, n")
    with pytest.raises(UserError, match=r"^eval: .*list\.txt: is a file, n"):
        open_benchmark(name, str(file), ALL, "eval")


@pytest.mark.parametrize("suffix", ["gif", "bmp", "tif", "ppm"])
def test_what_has_no_mark_at_its_end_is_decoded(tmp_path, suffix):
    root = lay(tmp_path / "val", ["a", "b"])
    file = root / "a" / f"cut.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(file)
    assert found_in("val", root).problems == ()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    found = found_in("val", root, hashing=False)
    assert [name for name, _ in found.reading.unreadable] == [f"a/cut.{suffix}"]
    with pytest.raises(UserError, match="cut"):
        scan(root, "x").image(1).decode()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.linspace(0, 1, 81, dtype=np.float32), "floating-point values, must hold 8 or 16 bits"),
        (np.arange(81, dtype=np.int32) * 1_000_000, "values of 32 bits, 0 to 80000000, must hold"),
    ],
)
def test_values_of_unknown_brightness_are_refused(tmp_path, values, told):
    root = lay(tmp_path / "val", ["a"])
    Image.fromarray(values.reshape(9, 9)).save(root / "a" / "deep.tif")
    ((name, why),) = found_in("val", root).reading.unreadable
    assert name == "a/deep.tif"
    assert told in why
    with pytest.raises(UserError, match="deep"):
        scan(root, "x").image(1).decode()
