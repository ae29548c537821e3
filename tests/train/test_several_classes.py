"""A sweep on scenes of several objects, from the images to the report."""

import pytest

from densevit.cli.main import main, main_sweep
from densevit.config.evaluation_names import DRAWN_TESTS
from densevit.data.shapes import dataset
from densevit.evaluate.metrics import score
from densevit.evaluate.predictions import MultiLabelPredictions, read_predictions
from densevit.runs.metrics_file import read_metrics
from densevit.sweep.plan import make_plan
from densevit.train.execute import execute
from densevit.utils.files import read_json

SWEEP = """
name: several
fixed:
  dataset: shapes-many
  model_kwargs: {img_size: 64, patch_size: 16, embed_dim: 32, depth: 2, num_heads: 2}
  batch_size: 16
  epochs: 2
  warmup_epochs: 0
  learning_rate: 1.0e-3
  queue_size: 100
  sampled_patches: 3
  dense_dim: 16
  projection_hidden_dim: 32
  workers: 0
  device: cpu
  mixup: 0.2
  watched: [shapes-many-a, knn]
  watch_every: 1
  probes: [knn, linear-probe]
grid: {cl_mode: [none, joint]}
seeds: 1
baseline: {cl_mode: none}
"""
SETS = ("val", *DRAWN_TESTS["shapes-many"])


@pytest.fixture
def few(monkeypatch):
    counts = dataset.SETS["shapes-many"].counts
    assert tuple(counts) == ("train", *SETS)
    for split in counts:
        monkeypatch.setitem(counts, split, 48 if split == "train" else 20)


def test_a_sweep_on_scenes_is_trained_evaluated_and_reported(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, outputs = tmp_path / "several.yaml", tmp_path / "out"
    file.write_text(SWEEP)
    plan = make_plan(file, outputs)
    for run in plan.runs:
        folder = plan.run_folder(run)
        folder.create(run.config)
        assert execute(folder) == 0
    found = read_json(folder.results_file)["benchmarks"]
    assert list(found) == [*SETS, "knn", "linear-probe"]
    for name in (*SETS, "knn", "linear-probe"):
        predictions = read_predictions(folder.predictions_file(name))
        assert isinstance(predictions, MultiLabelPredictions)
        assert found[name] == score(predictions)
        assert 0 < found[name]["map"] <= 100
        assert "top1" not in found[name]
    lines, _ = read_metrics(folder.metrics_file)
    logged = {name for line in lines for name in line}
    assert {"val/map", "watch/shapes-many-a/map", "watch/knn/map", "train/top1"} <= logged

    capsys.readouterr()
    assert main(["eval", str(folder.path), "shapes-many-r", "--workers", "0"]) == 0
    assert f"mAP {found['shapes-many-r']['map']:.2f}" in capsys.readouterr().out
    assert (
        main(
            [
                "compare",
                *(plan.run_folder(run).path.name for run in plan.runs),
                "--outputs",
                str(outputs),
            ]
        )
        == 0
    )
    assert "mAP" in capsys.readouterr().out
    assert main_sweep(["report", str(file), "--outputs", str(outputs)]) == 0
    told = capsys.readouterr().out
    assert "mAP (%), mean ± std over seeds" in told
    page = (outputs / "sweeps" / "several" / "report" / "report.md").read_text()
    assert "mAP" in page
    assert "top-1" not in page
    written = {path.name for path in (outputs / "sweeps" / "several" / "report").glob("*.png")}
    assert {"accuracy.png", "differences.png", "course-val-map.png", "pareto.png"} <= written
