"""`densevit data prepare` on small archives in the published layouts, and `data shapes`."""

import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from densevit.cli.data import add_data
from densevit.cli.parser import Parser, run_command
from densevit.data import imagenet
from densevit.data import prepare as module
from densevit.data.open_benchmark import LAYOUTS, open_benchmark
from densevit.data.prepare import PREPARED, prepare
from densevit.data.shapes import dataset
from densevit.utils.errors import UserError

A, ALL = imagenet.wnids("imagenet_a"), imagenet.wnids()
QUIET = [].append


def content(name):
    """Return bytes that identify the member of an archive, and its number."""
    return name.encode() * 2


def tarred(path, names, mode="w", **extra):
    with tarfile.open(path, mode) as tar:
        for name, data in [*((n, content(n)) for n in names), *extra.items()]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".prepare.lock"
    }


def said(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def run(*words):
    parser = Parser("densevit")
    add_data(parser.add_subparsers(dest="command", required=True))
    return run_command("densevit", parser, ["data", *map(str, words)])


@pytest.fixture
def a_tar(tmp_path):
    names = [f"imagenet-a/{wnid}/0.0001_digital clock_0.9.jpg" for wnid in A]
    return tarred(tmp_path / "imagenet-a.tar", names, **{"imagenet-a/README.txt": b"read me"})


ARCHIVES = {
    "imagenet-r": ("imagenet-r.tar", [f"imagenet-r/{w}/art_0.jpg" for w in imagenet.wnids("imagenet_r")]),
    "imagenet-v2": ("imagenetv2-matched-frequency.tar.gz",
                    [f"imagenetv2-matched-frequency-format-val/{n}/a.jpeg" for n in range(1000)]),
    "imagenet-sketch": ("ImageNet-Sketch.zip", [f"sketch/{w}/sketch_0.JPEG" for w in ALL]),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_leading_folder_is_taken_off(tmp_path, name):
    archive, names = ARCHIVES[name]
    if archive.endswith(".zip"):
        with zipfile.ZipFile(tmp_path / archive, "w") as held:
            held.writestr("sketch/", b"")
            held.writestr("__MACOSX/sketch/n01440764/._sketch_0.JPEG", b"junk")
            for each in names:
                held.writestr(each, content(each))
    else:
        tarred(tmp_path / archive, names, "w:gz" if archive.endswith(".gz") else "w")
    done = prepare(name, [tmp_path / archive], tmp_path / "to", QUIET)
    assert (done.written, done.there) == (len(names), 0)
    assert files(tmp_path / "to") == {n.partition("/")[2]: content(n) for n in names}
    opened = open_benchmark(name, str(tmp_path / "to"), ALL, "x")
    assert len(opened) == len(names)
    assert set(opened.labels) == set(range(len(names)))


def test_imagenet_c_by_parts(tmp_path, monkeypatch):
    few = ALL[:10]  # of its 1000 classes, whose names are all checked
    for at in ("open_benchmark", "known_benchmarks", "prepare"):
        monkeypatch.setattr(f"densevit.data.{at}.expected_classes", lambda _: few)
    names = [f"fog/{severity}/{wnid}/x.JPEG" for severity in "12345" for wnid in few]
    done = prepare("imagenet-c", [tarred(tmp_path / "weather.tar", names)], tmp_path / "to", QUIET)
    assert done.written == 50
    assert len(open_benchmark("imagenet-c", str(tmp_path / "to"), ALL, "x")) == 50
    part = tarred(tmp_path / "blur.tar", [n.replace("fog", "zoom_blur") for n in names[:40]])
    told = said(prepare, "imagenet-c", [part], tmp_path / "to", QUIET)
    assert "blur.tar: zoom_blur/5: its class folders must be 10 WordNet ids" in told
    assert not (tmp_path / "to" / "zoom_blur").exists()


def test_an_interrupted_preparation_carries_on(tmp_path, a_tar):
    to = tmp_path / "to"
    lines = []
    assert prepare("imagenet-a", [a_tar], to, lines.append) == (200, 0, ("imagenet-a/README.txt",))
    assert len(lines) == 6
    whole = files(to)
    for wnid in A[::3]:
        (to / wnid / "0.0001_digital clock_0.9.jpg").unlink()
    (to / A[0] / ".0.0001_digital clock_0.9.jpg.part").write_bytes(b"a part that was being written")
    before = (to / A[1] / "0.0001_digital clock_0.9.jpg").stat().st_ino
    assert prepare("imagenet-a", [a_tar], to, QUIET)[:2] == (67, 133)
    assert files(to) == whole
    assert (to / A[1] / "0.0001_digital clock_0.9.jpg").stat().st_ino == before
    moment = (to / A[1]).stat().st_mtime_ns
    assert prepare("imagenet-a", [a_tar], to, QUIET)[:2] == (0, 200)
    assert (to / A[1]).stat().st_mtime_ns == moment


def test_a_stop_while_writing_leaves_no_half_picture(tmp_path, a_tar, monkeypatch):
    copy, calls = module.shutil.copyfileobj, []

    def stopped(source, file, length):
        calls.append(1)
        if len(calls) == 50:
            file.write(source.read(5))
            raise KeyboardInterrupt
        copy(source, file, length)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare("imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert sum(name.endswith(".jpg") for name in files(tmp_path / "to")) == 49
    assert prepare("imagenet-a", [a_tar], tmp_path / "to", QUIET)[:2] == (151, 49)
    assert not [name for name in files(tmp_path / "to") if name.endswith(".part")]


def test_a_file_that_differs_is_not_overwritten(tmp_path, a_tar):
    mine = tmp_path / "to" / A[199] / "0.0001_digital clock_0.9.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    told = said(prepare, "imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert f"{mine}: exists with 4 bytes, not the archive's" in told
    assert list(files(tmp_path / "to").values()) == [b"mine"]


def evil(kind):
    entry = tarfile.TarInfo(f"imagenet-a/{A[0]}/evil.jpg")
    if kind in ("../x.jpg", "/tmp/x.jpg"):
        entry.name = kind if kind[0] == "/" else f"imagenet-a/{A[0]}/../../../x.jpg"
        entry.size = 3
    else:
        entry.type = kind
        entry.linkname = "0.0001_digital clock_0.9.jpg"  # inside: the filter `data` accepts it
    return entry


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("../x.jpg", "leads out of the folder"), ("/tmp/x.jpg", "leads out of the folder"),
        (tarfile.SYMTYPE, "is a link or a device"), (tarfile.LNKTYPE, "is a link or a device"),
        (tarfile.CHRTYPE, "is a link or a device"), (tarfile.FIFOTYPE, "is a link or a device"),
    ],
)  # fmt: skip
def test_a_member_that_leaves_the_folder_stops_it_before_anything_is_written(
    tmp_path, a_tar, kind, why
):
    with tarfile.open(a_tar, "a") as tar:
        tar.addfile(evil(kind), io.BytesIO(b"bad"))
    told = said(prepare, "imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert f"{evil(kind).name}: {why}" in told
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["sketch/../../x.JPEG", "/tmp/x.JPEG", "link"])
def test_a_zip_is_looked_through_as_well(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as held:
        for wnid in ALL:
            held.writestr(f"sketch/{wnid}/sketch_0.JPEG", b"x")
        entry = zipfile.ZipInfo(name)
        if name == "link":
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        held.writestr(entry, b"/etc")
    told = said(prepare, "imagenet-sketch", [tmp_path / "s.zip"], tmp_path / "to", QUIET)
    assert f"s.zip: {name}: " in told
    assert not (tmp_path / "to").exists()


def test_the_wrong_archive_and_a_torn_one(tmp_path, a_tar):
    to = tmp_path / "to"
    told = said(prepare, "imagenet-r", [a_tar], to, QUIET)
    assert "imagenet-a.tar: images in no class folder of the benchmark: imagenet-a/n" in told
    some = tarred(tmp_path / "some.tar", [f"imagenet-a/{wnid}/x.jpg" for wnid in A[:150]])
    assert "found 150; lacks" in said(prepare, "imagenet-a", [some], to, QUIET)
    torn = tmp_path / "torn.tar"
    torn.write_bytes(a_tar.read_bytes()[:50_000])
    assert "torn.tar: cannot be read as an archive" in said(
        prepare, "imagenet-a", [torn], to, QUIET
    )
    assert not to.exists()
    assert "these have: imagenet, imagenet-a" in said(prepare, "imagenet_a", [a_tar], to, QUIET)
    assert "gone.tar: no such file" in said(
        prepare, "imagenet-a", [tmp_path / "gone.tar"], to, QUIET
    )


@pytest.mark.parametrize("member", ["./.", "."])
def test_a_member_without_a_name_is_left_out(tmp_path, a_tar, member):
    with tarfile.open(a_tar, "a") as tar:
        entry = tarfile.TarInfo(member)  # a file with the name of a folder
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"odd"))
    done = prepare("imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert done == (200, 0, ("imagenet-a/README.txt", member))
    assert len(files(tmp_path / "to")) == 200


PICTURES = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 1001)]
# The class of each image in its own order, and the development kit's numbers in another.
TRUTH = [ALL[(37 * number) % 1000] for number in range(1000)]
KIT = {wnid: (411 * place) % 1000 + 1 for place, wnid in enumerate(ALL)}


def kit_file():
    """Return meta.mat as in the development kit, which also has synsets beyond the 1000 classes."""
    table = np.zeros(1002, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for place, (wnid, number) in enumerate(
        [*KIT.items(), ("n00000001", 1001), ("n00000002", 1002)]
    ):
        table[place] = (float(number), wnid, float(number > 1000))
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table.reshape(-1, 1)})
    return buffer.getvalue()


def kit(folder, form):
    """Write the ground truth in one of its published forms and return its path."""
    numbers = "".join(f"{KIT[wnid]}\n" for wnid in TRUTH).encode()
    truth = "ILSVRC2012_validation_ground_truth.txt"
    if form == "kaggle":
        lines = [f"{p[:-5]},{w} 1 2 3 4 \n" for p, w in zip(PICTURES, TRUTH, strict=True)]
        (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(lines))
        return folder / "LOC_val_solution.csv"
    if form == "synsets":
        path = folder / "imagenet_2012_validation_synset_labels.txt"
        path.write_text("\n".join(TRUTH) + "\n")
        return path
    if form == "kit archive":
        inside = "ILSVRC2012_devkit_t12/data"
        held = {f"{inside}/meta.mat": kit_file(), f"{inside}/{truth}": numbers}
        return tarred(folder / "ILSVRC2012_devkit_t12.tar.gz", [], "w:gz", **held)
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(kit_file())
    (data / truth).write_bytes(numbers)
    return data / truth if form == "kit file" else data.parent


@pytest.fixture(scope="module")
def val_tar(tmp_path_factory):
    return tarred(tmp_path_factory.mktemp("val") / "ILSVRC2012_img_val.tar", PICTURES)


@pytest.mark.parametrize("form", ["kaggle", "synsets", "kit archive", "kit folder", "kit file"])
def test_imagenet_gets_its_class_folders(tmp_path, val_tar, form):
    (tmp_path / "elsewhere").mkdir()
    truth = kit(tmp_path / "elsewhere", form)
    assert prepare("imagenet", [val_tar, truth], tmp_path / "to", QUIET) == (1000, 0, ())
    wanted = {f"{w}/{p}": content(p) for p, w in zip(PICTURES, TRUTH, strict=True)}
    assert files(tmp_path / "to") == wanted


def test_imagenet_without_or_with_other_ground_truth(tmp_path, val_tar):
    told = said(prepare, "imagenet", [val_tar], tmp_path / "to", QUIET)
    assert "LOC_val_solution.csv" in told
    assert told.endswith("or give it, or the development kit's archive")
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(TRUTH[:900]))
    given = [val_tar, tmp_path / "imagenet_2012_validation_synset_labels.txt"]
    told = said(prepare, "imagenet", given, tmp_path / "to", QUIET)
    assert "images without a label: ILSVRC2012_val_00000901.JPEG" in told
    (tmp_path / "LOC_val_solution.csv").write_text("ILSVRC2012_val_00000001\n")
    told = said(prepare, "imagenet", [val_tar, tmp_path / "LOC_val_solution.csv"], tmp_path, QUIET)
    assert told.startswith(f"imagenet: {tmp_path / 'LOC_val_solution.csv'}: cannot be read")
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("n00000001\n" * 1000)
    told = said(prepare, "imagenet", given, tmp_path / "to", QUIET)
    assert "found 1; lacks n01440764" in told
    assert not (tmp_path / "to").exists()


def test_a_link_in_the_folder_leads_nowhere(tmp_path, a_tar):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / A[0]).symlink_to(outside)
    told = said(prepare, "imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert f"{A[0]}: is a link that leads out of" in told
    assert files(outside) == {}


def test_one_preparation_at_a_time(tmp_path, a_tar):
    with module._alone(tmp_path / "to"):
        told = said(prepare, "imagenet-a", [a_tar], tmp_path / "to", QUIET)
    assert told.endswith("another preparation is writing there")


def test_the_command_tells_what_it_did(tmp_path, a_tar, capsys):
    assert run("prepare", "imagenet-a", a_tar, "--to", tmp_path / "to") == 0
    shown = capsys.readouterr().out
    told = f"200 written, 0 existed, in {tmp_path / 'to'}; ignored: imagenet-a/README.txt\n"
    assert f"imagenet-a: {told}" in shown
    assert run("prepare", "cue-conflict", a_tar, "--to", tmp_path / "to") == 2
    told = "densevit: cue-conflict: has no archives to unpack; these have: imagenet, imagenet-a, "
    assert capsys.readouterr().err.startswith(told)
    assert set(PREPARED) < LAYOUTS.keys()


def test_the_drawn_set_as_files_to_look_at(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(dataset.COUNTS, "val", 20)
    words = ["shapes", "--to", tmp_path, "--as", "folders", "--split", "val"]
    assert run(*words) == 0
    assert f"val: 20 images in {tmp_path / 'images' / 'val'}\n" == capsys.readouterr().out
    drawn = dataset.draw("val", 7, 32)
    file = f"{dataset.CLASSES[drawn.label]}/00007.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "val" / file)), drawn.image)
    mask = Image.open(tmp_path / "masks" / "val" / file)
    assert np.array_equal(np.asarray(mask), drawn.mask)
    seen = np.asarray(mask.convert("RGB"))
    assert (seen[drawn.mask > 0].max(axis=1) == 255).all()
    assert (seen[drawn.mask == 0] == 0).all()
    before = (tmp_path / "images" / "val" / file).stat().st_ino
    assert run(*words) == 0
    assert (tmp_path / "images" / "val" / file).stat().st_ino == before
    capsys.readouterr()
    assert run(*words, "--size", 48) == 2
    assert "holds images of 32 pixels a side" in capsys.readouterr().err


def test_an_empty_folder_is_drawn_into_and_foreign_files_are_left_alone(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(dataset.COUNTS, "val", 20)
    empty, full = (tmp_path / name / "images" / "val" for name in ("empty", "full"))
    for folder in (empty, full):
        folder.mkdir(parents=True)
    (full / "mine.txt").write_text("mine")
    words = ["shapes", "--as", "folders", "--split", "val", "--to"]
    assert run(*words, tmp_path / "empty") == 0
    assert len(list(empty.rglob("*.png"))) == 20
    capsys.readouterr()
    assert run(*words, tmp_path / "full") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"densevit: {full}: holds other files than drawn images")
    assert files(tmp_path / "full") == {"images/val/mine.txt": b"mine"}


def test_the_drawn_set_where_runs_look_for_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("DENSEVIT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(dataset.COUNTS, "val", 20)
    assert run("shapes", "--split", "val") == 0
    place = tmp_path / "densevit" / "shapes" / f"v{dataset.VERSION}-32px-seed0" / "val"
    assert capsys.readouterr().out == f"val: 20 images in {place}\n"
    assert np.load(place / "images.npy").shape == (20, 32, 32, 3)
    assert run("shapes", "--size", "16", "--to", tmp_path) == 2
    assert "the image size is 16" in capsys.readouterr().err
    assert run("shapes", "--as", "folders") == 2
