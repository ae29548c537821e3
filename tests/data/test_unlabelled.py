"""Images without labels at lambda_weight 1: what is read, and a run on them."""

import shutil
import tarfile

import datasets
import numpy as np
import pytest
from archives import colored
from PIL import Image

from densevit.cli.main import main, main_sweep
from densevit.config import yaml_file
from densevit.config.evaluation_names import benchmark_names
from densevit.config.identity import science
from densevit.config.resolve import Layer, build
from densevit.config.run_config import RunConfig
from densevit.data.check_folders import examine, listed
from densevit.data.datasets import open_data
from densevit.runs.directory import has_results
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.plan import make_plan
from densevit.train.execute import execute
from densevit.utils.errors import UserError
from densevit.utils.files import read_json

PATHS = ("1.png", "a/2.png", "a/deep/3.png", "b/1.png")


@pytest.fixture
def loose(tmp_path):
    for number, path in enumerate((*PATHS, "._x.png")):
        (tmp_path / "loose" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / path).write_bytes(colored(number))
    return tmp_path / "loose"


def config(folder, **settings):
    given = {"dataset": "x", "data_dir": str(folder), "batch_size": 2, "unlabelled": True}
    return build([Layer("test", {**given, "lambda_weight": 1.0, **settings})])


def said(call, *arguments, **settings):
    with pytest.raises(UserError) as error:
        call(*arguments, **settings)
    return str(error.value)


@pytest.mark.parametrize("form", ["folder", "train", "tar", "disk"])
def test_any_images_are_of_one_class_and_there_is_no_val(tmp_path, loose, form, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "data"
    if form == "folder":
        place = loose
    elif form == "train":
        shutil.copytree(loose, place / "train")
    elif form == "tar":
        place.mkdir()
        with tarfile.open(place / "train.tar", "w") as tar:
            tar.add(loose, arcname="")
    else:
        held = {"image": [{"bytes": colored(n), "path": None} for n in range(4)]}
        kinds = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict(held, features=kinds).save_to_disk(str(place))
    data = open_data(config(place), 32)
    assert data.train.classes == ("unlabelled",)
    assert list(data.train.labels) == [0] * 4
    assert [data.train.content(index) for index in range(4)] == [colored(n) for n in range(4)]
    if form != "disk":
        assert data.train.ids == PATHS
    assert (data.val, data.test_sets, data.shown) == (None, {}, data.train)
    assert data.fingerprint().keys() == {"train", "benchmarks"}


def test_unlabelled_images_are_checked(loose, tmp_path):
    (loose / "a" / "2.png").write_bytes(b"")
    found = examine(listed("train", loose, unlabelled=True), cache=tmp_path / "cache")
    assert found.problems == ("unreadable images: a/2.png (is empty)",)
    assert found.notes == ("skipped, hidden or written by the system: ._x.png",)


def test_what_needs_labels_is_refused(tmp_path):
    for settings, told in (
        ({"lambda_weight": 0.5}, "unlabelled: needs lambda_weight: 1, constant"),
        ({"cl_mode": "none"}, "unlabelled: needs lambda_weight: 1, constant"),
        ({"contrastive_weight_adaptive": True}, "unlabelled: needs lambda_weight: 1, constant"),
        ({"dataset": "shapes"}, "unlabelled: shapes has labels"),
        ({"probes": ["knn"]}, "unlabelled: probes: knn: needs labels"),
        ({"benchmarks": {"mine": "/x"}}, "unlabelled: benchmarks: mine: needs labels"),
        ({"watched": ["knn"]}, "unlabelled: watched: knn: needs labels"),
    ):
        assert told in said(config, tmp_path, **settings)
    (tmp_path / "train").mkdir()
    assert "train: holds no images" in said(open_data, config(tmp_path), 32)
    (tmp_path / "train" / "1.png").write_bytes(colored(1))
    labelled = RunConfig(dataset="x", data_dir=str(tmp_path), batch_size=2)
    assert "without labels: unlabelled: true, with lambda_weight: 1" in said(
        open_data, labelled, 32
    )


def test_only_an_unlabelled_run_has_another_identity(tmp_path):
    assert "unlabelled" not in science(RunConfig(lambda_weight=1.0))
    assert science(config(tmp_path))["unlabelled"] is True


def test_a_sweep_without_labels_trains_and_reports_no_accuracy(tmp_path, tiny, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for number in range(16):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
    fixed = {**tiny, "data_dir": str(tmp_path / "data"), "benchmarks": {}, "dataset": "loose"}
    fixed |= {"unlabelled": True, "lambda_weight": 1.0, "epochs": 1}
    file, outputs = tmp_path / "loose.yaml", tmp_path / "out"
    file.write_text(yaml_file.dump({"name": "loose", "fixed": fixed, "seeds": 1}))
    plan = make_plan(file, outputs)
    folder = plan.run_folder(plan.runs[0])
    folder.create(plan.runs[0].config)
    assert execute(folder) == 0
    assert (folder.status().state, folder.status().top1) == ("finished", None)
    assert benchmark_names(folder.config()) == []
    assert has_results(folder, folder.config())
    assert read_json(folder.results_file)["benchmarks"] == {}
    names = {name for line in read_metrics(folder.metrics_file)[0] for name in line}
    assert {"train/loss", "train/contrastive_loss", "health/patch_rank"} <= names
    assert not [name for name in names if "top1" in name or name.startswith("val/")]
    assert folder.matches_file("after").exists()
    assert main(["eval", str(folder.path)]) == 2
    assert "was trained without labels, and has no test sets" in capsys.readouterr().err
    for command in ("status", "report"):
        assert main_sweep([command, str(file), "--outputs", str(outputs)]) == 0
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert "100.0 %" not in shown.out
