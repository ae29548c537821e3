"""Hugging Face data sets: which split is read, and which column holds the labels."""

import datasets
import pytest
from archives import colored

from densevit.config.run_config import RunConfig
from densevit.data.check_contents import check_contents
from densevit.data.check_folders import listed
from densevit.data.datasets import open_data
from densevit.data.hugging_face import open_hugging_face
from densevit.data.open_benchmark import open_benchmark
from densevit.data.shared_images import find_shared
from densevit.utils.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table(first=0, **columns):
    """Return a data set of colored images and further columns: name=(values, feature)."""
    count = len(next(iter(columns.values()))[0])
    held = {"image": [{"bytes": colored(first + n), "path": None} for n in range(count)]}
    held |= {name: values for name, (values, _) in columns.items()}
    kinds = {"image": datasets.Image()} | {name: kind for name, (_, kind) in columns.items()}
    return datasets.Dataset.from_dict(held, features=datasets.Features(kinds))


def classes(*names):
    return datasets.ClassLabel(names=list(names))


def saved(root, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


def config(root, **settings):
    return RunConfig(dataset="x", data_dir=str(root), batch_size=1, **settings)


def said(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


def test_one_split_is_not_both_train_and_val(tmp_path):
    part = table(label=([0, 1, 0, 1], classes("a", "b")))
    root = saved(tmp_path / "train_alone", train=part)
    assert "has no split val, but train" in said(open_data, config(root), 32)
    part.save_to_disk(str(tmp_path / "none"))
    told = said(open_data, config(tmp_path / "none"), 32)
    assert f"{tmp_path / 'none'}: has no splits: its images cannot be both train and val" in told
    assert "has no splits" in listed("val", tmp_path / "none").problems[0]
    # As a test set of its own either may be used.
    for path in (root, tmp_path / "none"):
        assert len(open_benchmark("mine", str(path), ("a", "b"), "x")) == 4
        assert listed("mine", path).problems == []


def test_a_split_that_was_saved_twice_is_noticed(tmp_path):
    part = table(label=([0, 1, 0, 1], classes("a", "b")))
    other = table(first=9, label=([0, 1, 0, 1], classes("a", "b")))
    data = open_data(config(saved(tmp_path / "twice", train=part, validation=part)), 32)
    assert find_shared(data.train, data.val.images).share == 1
    data = open_data(config(saved(tmp_path / "fine", train=part, validation=other)), 32)
    assert find_shared(data.train, data.val.images).share == 0
    turned = part.select([3, 2, 1, 0])
    data = open_data(config(saved(tmp_path / "turned", train=part, validation=turned)), 32)
    told = "val: 100.0 % of its images are also in train: train-3 = val-0, train-2 = val-1"
    assert said(check_contents, data).startswith(told)


def cifar(first=0):
    return table(
        first,
        fine_label=([2, 0, 1], classes("rose", "apple", "bed")),
        coarse_label=([0, 1, 0], classes("plants", "things")),
        number=([7, 10, 7], datasets.Value("int32")),
        text=(["fox", "owl", "fox"], datasets.Value("string")),
        score=([0.5, 1.0, 2.0], datasets.Value("float32")),
    )


def test_the_label_column_is_named(tmp_path):
    root = saved(tmp_path / "cifar100", train=cifar(), test=cifar(5))
    told = said(open_data, config(root), 32)
    assert "must have one column of class labels, has fine_label, coarse_label; name one: " in told
    wanted = {
        "fine_label": (("apple", "bed", "rose"), [1, 2, 0]),
        "coarse_label": (("plants", "things"), [0, 1, 0]),
        "number": (("10", "7"), [1, 0, 1]),  # in the order of folders
        "text": (("fox", "owl"), [0, 1, 0]),
    }
    for column, (names, labels) in wanted.items():
        data = open_data(config(root, label_column=column), 32)
        assert data.train.classes == data.val.classes == names
        assert list(data.train.labels) == list(data.val.labels) == labels
    assert "label_column: score: is no column of class labels, integers or text" in said(
        open_data, config(root, label_column="score"), 32
    )
    assert "did you mean 'fine_label'?" in said(open_data, config(root, label_column="fine"), 32)
    given = {"path": str(root), "label_column": "text"}
    assert list(open_benchmark("mine", given, ("fox", "owl"), "x").labels) == [0, 1, 0]
    assert listed("train", root, "text").problems == []


def test_a_label_column_is_for_tables_alone(tmp_path):
    for path in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "1.png").write_bytes(colored(1))
    told = said(open_data, config(tmp_path, label_column="label"), 32)
    assert "label_column: label: is for Hugging Face data sets" in told


def test_a_missing_label_of_a_plain_column_is_told(tmp_path):
    for name, kind, values in (("n", "int64", [1, None, 2]), ("m", "int64", [0, -1, 2]),
                               ("t", "string", ["a", "", "b"])):  # fmt: skip
        table(**{name: (values, datasets.Value(kind))}).save_to_disk(str(tmp_path / name))
        told = said(open_hugging_face, tmp_path / name, "test", "x", name)
        assert told == f"x: {tmp_path / name}: test holds images without a label"


def test_parquet_files_of_other_systems_are_no_split(tmp_path):
    part = table(label=([0, 1], classes("a", "b")))
    part.to_parquet(tmp_path / "train-0.parquet")
    table(5, label=([0, 1], classes("a", "b"))).to_parquet(tmp_path / "val-0.parquet")
    (tmp_path / "._train-0.parquet").write_bytes(b"a resource fork")
    assert len(open_data(config(tmp_path), 32).train) == 2
    assert open_hugging_face(tmp_path, "train", "x").content(1) == colored(1)


def test_a_script_beside_the_tables_is_not_run(tmp_path):
    """Earlier versions of `datasets` ran a script of the folder's name."""
    root, mark = tmp_path / "blobs", tmp_path / "mark"
    root.mkdir()
    table(label=([0, 1], classes("a", "b"))).to_parquet(str(root / "train-0.parquet"))
    for name in ("blobs", "dataset", "train"):
        (root / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    assert len(open_hugging_face(root, "train", "x")) == 2
    assert not mark.exists()
