"""Failures that differ only in details are one line."""

import pytest

from densevit.launch.run_state import STATE_NAMES, RunState
from densevit.monitor.failures import Failures, grouped, without_details


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no such file: /data/a/train/x.jpg", "no such file: /scratch/b-2/y_1.png"),
        ("FileNotFoundError: '/a/b'", "FileNotFoundError: '/a'"),
        ("run 0123456789ab failed", "run fedcba987654 failed"),
        ("<object at 0x7f3a00>", "<object at 0xdeadbeef01>"),
        (
            "GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f is lost",
            "GPU-00000000-aaaa-bbbb-cccc-0123456789ab is lost",
        ),
        ("out of memory: 20.00 MiB of 79.15 GiB", "out of memory: 512 MiB of 15.9 GiB"),
        ("loss at step 10, rate 1e-05", "loss at step 1,234, rate 0.001"),
        ("its node failed 5 times (node01, node02)", "its node failed 7 times (node11, node03)"),
        ("Slurm says TIMEOUT on node1", "Slurm says TIMEOUT on node12"),
        ("epoch 3: -1.5", "epoch 12: +2"),
    ],
)
def test_paths_ids_and_numbers_are_details(one, other):
    assert without_details(one) == without_details(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ImportError: no module timm", "ImportError: no module torch"),
        ("Slurm says TIMEOUT on node1", "Slurm says NODE_FAIL on node1"),
        ("loss is nan", "gradient is nan"),
        ("", "x"),
    ],
)
def test_words_are_none(one, other):
    assert without_details(one) != without_details(other)


def failed(why, cause="code"):
    return RunState("failed", why, cause)


def test_the_commonest_failure_is_first_with_the_message_of_its_first_run():
    runs = {
        "a": failed("out of memory: 2 GiB", "oom"),
        "b": failed("no module timm: /home/a/timm"),
        "c": failed("no module timm: /home/b"),
        "d": failed("no module timm: /home/c", "oom"),
        "e": RunState("running", "no module timm: /home/a"),
        "f": failed("no module timm: /x/y/z"),
        "g": failed("out of memory: 3.5 GiB", "oom"),
    }
    assert grouped(runs) == [
        Failures("code", "no module timm: /home/a/timm", ("b", "c", "f")),
        Failures("oom", "out of memory: 2 GiB", ("a", "g")),
        Failures("oom", "no module timm: /home/c", ("d",)),
    ]


def test_what_has_not_failed_is_in_no_group():
    runs = {word: RunState(word, "a reason", "oom") for word in STATE_NAMES if word != "failed"}
    assert grouped(runs) == []
    assert grouped({}) == []
