"""metrics.jsonl is whole whatever the disk does."""

import errno
import io
import json
import os
from pathlib import Path

import pytest

from densevit.errors import UserError
from densevit.metricsfile import MetricsFile


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
    with pytest.raises(UserError, match="has lost lines that its checkpoint counts"):
        MetricsFile(path, 100)
    assert path.read_text() == "short\n"


def test_what_a_full_disk_does_not_take_is_written_later(tmp_path, monkeypatch, caplog):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 0})
    real = Path.open

    class Full(io.FileIO):
        """Takes half of what it is given."""

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


def test_no_nan_ever(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="Out of range"):
        metrics.write({"step": 0, "x": float("nan")})
