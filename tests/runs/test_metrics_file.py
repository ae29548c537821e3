"""metrics.jsonl stays intact whatever the disk does."""

import errno
import io
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from densevit.config import yaml_file
from densevit.results.collect.costs import costs
from densevit.results.collect.curves import curves
from densevit.results.compare import cells, comparison, runs
from densevit.results.figures.curves import curves_by_cell
from densevit.runs.metrics_file import MetricsFile, finite, number, read_metrics
from densevit.sweep.plan import make_plan
from densevit.train.execute import execute
from densevit.utils.errors import EXIT_FAILED, LostFolder, UserError


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_appended_after_what_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in range(3):
        first.write({"step": step})
    kept = first.length
    first.write({"step": 99})
    again = MetricsFile(path, kept)
    again.write({"step": 3})
    again.sync()
    assert steps(path) == [0, 1, 2, 3]
    assert again.length == path.stat().st_size


def test_lost_lines_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("short\n")
    with pytest.raises(UserError, match="is shorter than when its checkpoint was written"):
        MetricsFile(path, 100)
    assert path.read_text() == "short\n"


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 0})
    real = Path.open

    class Full(io.FileIO):
        """Accept half of what is written."""

        def write(self, data):
            super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda p, mode: Full(p, mode.replace("b", "")))
    metrics.write({"step": 1})
    metrics.write({"step": 2})
    assert not metrics.flush()
    assert "No space left on device; 2 lines wait to be written" in caplog.text
    monkeypatch.setattr(Path, "open", real)
    assert len(path.read_text().splitlines()) > 1, "there is half a line"
    metrics.write({"step": 3})
    assert steps(path) == [0, 1, 2, 3]


@pytest.mark.parametrize("left", [None, b"", b'{"step": 7}\n'], ids=["nothing", "empty", "new"])
def test_no_line_goes_into_a_file_that_somebody_has_removed_or_replaced(tmp_path, left):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in range(3):
        metrics.write({"step": step})
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    with pytest.raises(LostFolder, match=r"metrics.jsonl: was removed or replaced"):
        metrics.write({"step": 3})
    assert path.exists() == (left is not None)
    assert left is None or path.read_bytes() == left, "not a byte more"


def plain(_word):
    raise AssertionError("no JSON: it has no such word")


@given(st.lists(st.dictionaries(st.text(), st.floats() | st.integers(-(2**53), 2**53)), max_size=4))
@example([{"a": math.nan, "b": math.inf, "c": -math.inf, "d": -0.0, "e": 5e-324, "step": 3}])
def test_any_number_comes_back_and_the_file_is_plain_json(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        metrics = MetricsFile(path, 0)
        for line in lines:
            metrics.write(line)
        assert metrics.length == path.stat().st_size
        for text in path.read_text().splitlines():
            json.loads(text, parse_constant=plain)
        read, _ = read_metrics(path)
    assert [list(line) for line in read] == [list(line) for line in lines]
    for got, line in zip(read, lines, strict=True):
        for name, value in line.items():
            assert repr(float(got[name])) == repr(float(value))  # NaN too, and the sign of 0
            assert repr(number(got[name])) == repr(float(value))
            assert finite(got[name]) == (float(value) if math.isfinite(value) else None)


@pytest.mark.parametrize("value", ["nan", "inf", "1.0", "", True, None, [1.0], {}], ids=str)
def test_what_is_no_number(value):
    assert number(value) is None
    assert finite(value) is None


def test_the_curves_of_a_run_that_diverged(tmp_path, tiny):
    diverging = {**tiny, "cl_mode": "none", "learning_rate": 1e30, "grad_clip": 0}
    (tmp_path / "base.yaml").write_text(yaml_file.dump(diverging))
    (tmp_path / "sweep.yaml").write_text("name: lost\nbase: base.yaml\nseeds: 1\n")
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "outputs")
    (run,) = plan.runs
    folder = plan.run_folder(run)
    folder.create(run.config)
    assert execute(folder) == EXIT_FAILED
    frame = curves(plan, ["train/loss", "val/nll", "val/top1"])
    loss = frame[frame["name"] == "train/loss"]
    assert loss["step"].tolist() == [2, 4, 5, 6]
    assert np.isfinite(loss["value"]).tolist() == [True, False, False, False]
    assert frame[frame["name"] == "val/nll"]["value"].isna().tolist() == [True]
    course = curves_by_cell(frame, pd.DataFrame({"cell": [run.cell]}), "train/loss")[run.cell]
    assert course.broken.tolist() == [[0.4, loss["value"].iloc[0]]], "the last before it diverged"


def test_costs_and_health_of_a_run_with_numbers_that_are_none(tmp_path, tiny):
    (tmp_path / "base.yaml").write_text(yaml_file.dump(tiny))
    (tmp_path / "sweep.yaml").write_text("name: odd\nbase: base.yaml\nseeds: 2\n")
    plan = make_plan(tmp_path / "sweep.yaml", tmp_path / "outputs")
    speeds = [100.0, math.nan, 300.0, math.inf]
    for run in plan.runs:
        folder = plan.run_folder(run)
        folder.create(run.config)
        metrics = MetricsFile(folder.metrics_file, 0)
        for step, speed in enumerate(speeds):
            wait = {"train/images_per_second": speed, "time/data_ms": -speed}
            metrics.write({"step": step, "epoch": 0.5, "train/peak_memory_mib": speed, **wait})
        sign = 1 if run.seed else -1
        metrics.write({"step": 4, "health/a": math.nan, "health/b": sign * math.inf, "health/c": 2})
    table = costs(plan)
    assert table["images_per_second"].tolist() == [200.0, 200.0]
    assert table["data_ms"].tolist() == [-200.0, -200.0]
    assert table["peak_memory_mib"].tolist() == [300.0, 300.0]
    alone = runs._costs_of_run(plan.run_folder(plan.runs[0]))
    assert (alone["images/s"], alone["peak memory (GiB)"]) == (200.0, 300 / 1024)
    health = comparison.last_health(plan.run_folder(plan.runs[0]))
    assert [repr(health[name]) for name in "abc"] == ["nan", "-inf", "2.0"]
    health = cells._health_of_cell(plan, plan.runs[0].cell)
    assert [repr(health[name]) for name in "abc"] == ["nan", "nan", "2.0"]
