"""A probe that only this file and a record know: run with a sweep, and in its report."""

import json

import forked
import pytest
import torch
from tiny import TINY
from torch.nn import functional as F

from densevit.cli.main import main
from densevit.config import probes, yaml_file
from densevit.config.metrics import Metric
from densevit.config.probes import Probe
from densevit.config.resolve import build, read_layers
from densevit.data.shapes import dataset
from densevit.results.report import figures
from densevit.sweep.plan import make_plan
from densevit.utils.errors import UserError

NAME = "class-means"


def predict(probe):
    """Classify by the nearest mean of a class."""
    train, test = probe.train, probe.test
    labels = F.one_hot(train.labels, len(train.images.classes)).float()
    means = (labels.T @ train.features.float()) / labels.sum(dim=0)[:, None]
    return probe.class_predictions(-torch.cdist(test.features.float(), means))


def score(predictions):
    return {"miss": 100 - 100 * float(predictions.hits.mean()), "n": len(predictions.samples)}


RECORD = Probe(
    NAME, "patch", f"{__name__}:predict", score=f"{__name__}:score",
    metrics=(Metric("miss", "missed images", lower_is_better=True),), watchable=True,
)  # fmt: skip


def sweep_with_the_probe(arguments):
    """Run `densevit-sweep` as somebody does who has added the record, on a few images."""
    probes.PROBES += (RECORD,)
    dataset.COUNTS.update(dict.fromkeys(dataset.SPLITS, 10))
    figures.draw_all = lambda *_: {}
    return forked.sweep(arguments)


def test_a_new_probe_is_a_record_and_a_function(tmp_path, monkeypatch, capsys):
    settings = {
        **TINY, "dataset": "shapes", "data_dir": str(tmp_path / "shapes"), "cl_mode": "none",
        "epochs": 2, "probes": ["knn-patch", NAME], "watched": [NAME], "watch_every": 1,
    }  # fmt: skip
    file, outputs = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(yaml_file.dump({"name": "little", "fixed": settings, "seeds": 1}))
    command = ["run", file, "--outputs", outputs, "--no-tracking"]
    done = forked.done(command, work=sweep_with_the_probe)
    assert done.returncode == 0, done.stdout + done.stderr

    monkeypatch.setattr(probes, "PROBES", (*probes.PROBES, RECORD))
    plan = make_plan(file, outputs)
    folder = plan.run_folder(plan.runs[0])
    found = json.loads(folder.results_file.read_text())["benchmarks"]
    assert found[NAME].keys() == {"miss", "n"}
    assert found["knn-patch"]["top1"] > 0
    assert f'"watch/{NAME}/miss"' in folder.metrics_file.read_text()
    assert f"{NAME}: missed images" in folder.log_file.read_text()
    report = (plan.folder / "report" / "report.md").read_text()
    _, _, table = report.partition("## Probes")
    assert "missed images (%) of probes" in table
    assert f"{found[NAME]['miss']:.1f}" in table
    assert main(["eval", str(folder.path), "--from-predictions"]) == 0
    text = f"{NAME}: missed images {found[NAME]['miss']:.2f} %; 10 images"
    assert text in capsys.readouterr().out


def test_an_unlisted_probe_is_refused_with_the_nearest_name(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml_file.dump({**TINY, "probes": ["knn", "dens-probe"]}))
    with pytest.raises(UserError) as error:
        build(read_layers(file))
    assert str(error.value).endswith(
        "probes.1: 'dens-probe' is not valid; did you mean 'dense-probe'?"
    )
