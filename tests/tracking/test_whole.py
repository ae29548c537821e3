"""A real sweep and its mirror, as a user sees both."""

import json
import shutil

import forked
import forkedmirror
import mlflow
import numpy as np
import torch
from rundirs import artifacts_of, client_of

from densevit.config import yaml_file
from densevit.models.load import load_model
from densevit.runs.directory import run_folder
from densevit.tracking.mirror_process import up_to_date


def sweep(tmp_path, tiny, *words, **base):
    settings = {**tiny, "epochs": 1, "experiment_name": "tests", **base}
    (tmp_path / "base.yaml").write_text(yaml_file.dump(settings))
    (tmp_path / "sweep.yaml").write_text(
        "name: whole\nbase: base.yaml\ndescription: Does it matter?\n"
        "grid: {cl_mode: [none, dense]}\nbaseline: {cl_mode: none}\n"
    )
    given = [tmp_path / "sweep.yaml", "--outputs", tmp_path / "out", *words]
    done = forked.done(given, forkedmirror.sweep)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return done.stdout


def test_a_sweep_is_shown_and_later_its_networks_too(tmp_path, tiny, empty_store, monkeypatch):
    outputs, store = tmp_path / "out", f"sqlite:///{tmp_path}/elsewhere.db"
    shutil.copy(empty_store, tmp_path / "elsewhere.db")
    assert "0 finished before, 2 to run" in sweep(tmp_path, tiny, "--tracking-uri", store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert not (outputs / "mlflow.db").exists()
    client = client_of(outputs)
    experiment = client.get_experiment_by_name("tests").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {"whole", "none, seed 0", "dense, seed 0"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent, plain, dense = (runs[n] for n in ("whole", "none, seed 0", "dense, seed 0"))
    tags = dense.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["densevit.launcher"] == "local"
    assert tags["densevit.restarts"] == "0"
    assert (tags["cl_mode"], plain.data.tags["cl_mode"]) == ("dense", "none")
    assert "cl_mode: dense (there none)" in tags["mlflow.note.content"]
    assert parent.data.tags["mlflow.note.content"] == "Does it matter?"

    folder = run_folder(outputs, tags["densevit.run"])
    points, last = {}, {}
    for line in map(json.loads, folder.metrics_file.read_text().splitlines()):
        for key, value in line.items():
            if key not in ("step", "epoch", "time"):
                points.setdefault(key, []).append((line["step"], float(value)))
    for key, wanted in points.items():
        found = client.get_metric_history(dense.info.run_id, key)
        assert sorted((p.step, p.value) for p in found) == wanted
        last[key] = wanted[-1][1]
    assert dense.data.metrics == last
    for key in ("train/loss", "train/images_per_second", "train/peak_memory_mib", "time/data_ms",
                "val/top1", "dark/top1", "health/dense_effective_rank"):  # fmt: skip
        assert key in last
    held = artifacts_of(outputs, dense.info.run_id)
    assert {"config.yaml", "provenance.json", "results.json", "log.txt"} <= held
    assert {"predictions/val.parquet", "predictions/dark.parquet"} <= held
    assert {"sweep.yaml", "plan.json", "report/report.html"} <= artifacts_of(
        outputs, parent.info.run_id
    )

    assert client.search_logged_models([experiment]) == []
    assert "2 finished before, 0 to run" in sweep(tmp_path, tiny, log_model=True)
    models = client.search_logged_models([experiment])
    assert {model.source_run_id for model in models} == {plain.info.run_id, dense.info.run_id}
    (model,) = [model for model in models if model.source_run_id == dense.info.run_id]
    mlflow.set_tracking_uri(store)
    try:
        loaded = mlflow.pyfunc.load_model(model.model_uri)
    finally:
        mlflow.set_tracking_uri(None)  # this removes the variable too
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = load_model("", folder, None).model.eval()(pictures).logits
    assert np.array_equal(loaded.predict(pictures.numpy()), wanted.numpy())

    ids = [run.data.tags["densevit.run"] for run in (plain, dense)]
    assert up_to_date(outputs, ids, "whole")
    assert "2 finished before, 0 to run" in sweep(tmp_path, tiny, log_model=True)
    assert len(client.search_logged_models([experiment])) == 2
    assert len(client.search_runs([experiment])) == 3
