"""Tar files and Hugging Face data sets hold the same images as the folders they were made from."""

import pickle
import shutil
import tarfile

import datasets
import numpy as np
import pytest
import torch

from densevit.config.run_config import RunConfig
from densevit.data.archives import open_tar
from densevit.data.datasets import open_data
from densevit.data.hugging_face import open_hugging_face
from densevit.data.image_folder import scan
from densevit.data.loaders import BatchOrder, training_batches
from densevit.runs.directory import RunFolder
from densevit.train.execute import execute
from densevit.utils.errors import EXIT_MISTAKE, UserError
from densevit.utils.files import read_json


def pack(folder, target, *, inside=""):
    with tarfile.open(target, "w") as tar:
        for path in sorted(folder.rglob("*.*")):
            tar.add(path, arcname=f"{inside}{path.relative_to(folder)}")


def tarred(blobs, root, form):
    """Pack train and val as one tar each, or as one tar per class."""
    root.mkdir()
    for split in ("train", "val"):
        if form == "one":
            pack(blobs / split, root / f"{split}.tar")
        else:
            (root / split).mkdir()
            for each in sorted((blobs / split).iterdir()):
                pack(each, root / split / f"{each.name}.tar")


def columns(folder):
    images = scan(folder, "x")
    return {
        "image": [str(images.root / name) for name in images.ids],
        "label": list(images.labels),
    }, images.classes


def data_set(folder):
    held, classes = columns(folder)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    )
    return datasets.Dataset.from_dict(held, features=features)


def saved(blobs, root, form):
    splits = {"train": data_set(blobs / "train"), "validation": data_set(blobs / "val")}
    if form == "disk":
        datasets.DatasetDict(splits).save_to_disk(str(root))
        return
    (root / "data").mkdir(parents=True)
    for name, part in splits.items():
        encoded = part.map(lambda row: row)  # holds the bytes, as on the hub
        encoded.to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")


FORMS = {"one": tarred, "each": tarred, "disk": saved, "parquet": saved}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_holds_what_the_folders_hold(tmp_path, blobs, form):
    FORMS[form](blobs, tmp_path / "packed", form)
    config = RunConfig(dataset="packed", data_dir=str(tmp_path / "packed"), batch_size=4)
    data = open_data(config, 32)
    for split in ("train", "val"):
        images, wanted = getattr(data, split), scan(blobs / split, "x")
        assert images.classes == wanted.classes
        assert sorted(images.labels) == sorted(wanted.labels)

        def content(images):
            return sorted(
                (images.labels[i], np.asarray(images.image(i).decode()).tobytes())
                for i in range(len(images))
            )

        assert content(images) == content(wanted)
        assert len(set(images.ids)) == len(images)
        assert images.fingerprint()["images"] == len(wanted)


@pytest.mark.parametrize("form", FORMS)
def test_several_processes_read_an_archive_that_was_read_before_them(tmp_path, blobs, form):
    FORMS[form](blobs, tmp_path / "packed", form)
    config = RunConfig(dataset="packed", data_dir=str(tmp_path / "packed"), batch_size=4)
    images = open_data(config, 32).train
    for index in range(5):
        images.image(index).decode()
    order = BatchOrder(len(images), batch_size=2, seed=0)
    alone = list(training_batches(images, 32, order, workers=0, pin=False))
    together = list(training_batches(images, 32, order, workers=3, pin=False))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.first.pixels, other.first.pixels)
        assert torch.equal(one.labels, other.labels)
    pickle.loads(pickle.dumps(images)).image(0).decode()  # as spawned processes receive it


def test_a_run_trains_on_a_tar_and_is_evaluated_on_others(tmp_path, blobs, tiny):
    tarred(blobs, tmp_path / "packed", "one")
    pack(blobs / "dark", tmp_path / "dark.tar")
    data_set(blobs / "dark").save_to_disk(str(tmp_path / "dark_set"))
    benchmarks = {
        "folder": str(blobs / "dark"), "tar": str(tmp_path / "dark.tar"),
        "set": str(tmp_path / "dark_set"),
    }  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    settings = {**tiny, "data_dir": str(tmp_path / "packed"), "benchmarks": benchmarks}
    folder.create(RunConfig(**settings))
    assert execute(folder) == 0
    results = read_json(folder.results_file)["benchmarks"]
    assert results["tar"] == pytest.approx(results["folder"])
    assert results["set"] == pytest.approx(results["folder"])


def said(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_wrong_with_an_archive_is_one_line(tmp_path, blobs):
    torn = tmp_path / "torn.tar"
    torn.write_bytes(b"no tar at all")
    assert said(open_tar, torn, "x: data_dir").startswith(f"x: data_dir: {torn}: cannot be read")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert "empty.tar" in said(open_tar, tmp_path / "empty.tar", "x")
    saved(blobs, tmp_path / "set", "disk")
    shutil.rmtree(tmp_path / "set" / "validation")
    assert "cannot be read as a data set" in said(open_hugging_face, tmp_path / "set", "val", "x")
    part = data_set(blobs / "val")
    datasets.DatasetDict({"train": part, "other": part}).save_to_disk(str(tmp_path / "b"))
    assert "has no split val, but train, other" in said(
        open_hugging_face, tmp_path / "b", "val", "x"
    )
    part.remove_columns("label").save_to_disk(str(tmp_path / "c"))
    assert "must have one column of class labels, has image" in said(
        open_hugging_face, tmp_path / "c", "test", "x"
    )


def test_pictures_without_a_label_or_without_a_picture_are_told(tmp_path, blobs):
    held, classes = columns(blobs / "val")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    )
    for name, change in (("label", {"label": [-1] * 15}), ("image", {"image": [None] * 15})):
        made = datasets.Dataset.from_dict({**held, **change}, features=features)
        made.save_to_disk(str(tmp_path / name))
    told = said(open_hugging_face, tmp_path / "label", "test", "x")
    assert told == f"x: {tmp_path / 'label'}: test holds images without a label"
    images = open_hugging_face(tmp_path / "image", "test", "x")
    assert said(images.image, 3).startswith(f"{tmp_path / 'image'}: val-3: cannot be read as an")


def test_a_damaged_picture_in_a_tar_is_named(tmp_path, blobs, tiny):
    shutil.copytree(blobs, tmp_path / "data")
    torn = tmp_path / "data" / "train" / "red" / "3.png"
    torn.write_bytes(torn.read_bytes()[:100])
    tarred(tmp_path / "data", tmp_path / "packed", "one")
    folder = RunFolder(tmp_path / "run")
    folder.create(RunConfig(**{**tiny, "data_dir": str(tmp_path / "packed"), "benchmarks": {}}))
    assert execute(folder) == EXIT_MISTAKE
    told = f"train: {tmp_path}/packed/train.tar: red/3.png: is truncated"
    assert folder.status().message.startswith(told)
