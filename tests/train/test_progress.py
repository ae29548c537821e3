"""How a run reports its progress, on a terminal and in a log."""

import json
import logging
import os
import pty
import re
from select import select

import pytest
from forked import Forked

from densevit.train import progress
from densevit.train.progress import summary

LINE = {"train/images_per_second": 1234.4, "train/loss": 1.2345, "train/top1": 45.67}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(59.9, "0:59 min left"), (61, "1:01 min left"), (3600, "1 h 00 min left"),
     (100_000, "27 h 46 min left")],
)  # fmt: skip
def test_speed_loss_accuracy_and_time_left(seconds, told):
    assert summary(LINE, seconds) == f"1,234 images/s, loss 1.234, top-1 45.7 %, {told}"


def test_a_log_has_a_line_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "densevit")
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 75.0, 75.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress() as show:
        for step in (1, 2, 3, 4):
            show(step, 10, f"facts {step}")
    assert caplog.messages == ["step 2 of 10: facts 2", "step 4 of 10: facts 4"]


def test_a_terminal_shows_a_bar_and_the_log_above_it(tmp_path, tiny):
    flags = ["train", "--no-tracking", "--outputs", str(tmp_path)]
    for name, value in {**tiny, "epochs": 4, "log_every": 1}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flags += [f"--{name.replace('_', '-')}", text]
    ours, theirs = pty.openpty()
    process = Forked(flags, os.ttyname(theirs), TERM="xterm-256color", COLUMNS="120")
    shown = b""
    while process.poll() is None or select([ours], [], [], 0)[0]:
        if select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 65536)
    os.close(theirs)
    assert process.wait(240) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"\d+/20 .*images/s, loss [\d.]+, top-1 [\d.]+ %, 0:\d\d min left", text)
    assert "epoch 3 of 4: val top-1" in text
    assert "finished" in text
