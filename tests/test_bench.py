"""The benches run and write the expected output; the times themselves are not tested."""

import json
import multiprocessing
from pathlib import Path

import forked
import pytest

FOLDER = Path(__file__).parents[1] / "bench"
SMALL = [
    "--model-kwargs", "{img_size: 32, patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}",
    "--batch", "2", "--queue", "256", "--query-patches", "4", "--sampled-patches", "5",
    "--device", "cpu", "--threads", "1", "--rounds", "1", "--steps", "1", "--warmup", "1",
]  # fmt: skip


def bench(*arguments, name="contrast_step.py", work=forked.script):
    return forked.done([FOLDER / name, *arguments], work)


def forking(arguments):
    """Run a script whose processes are forked from it and import nothing again."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _: fork
    forked.script(arguments)


def test_a_small_table(tmp_path):
    file = tmp_path / "bench.json"
    words = [*SMALL, "--arms", "queries,plain", "--repeat-pictures", "--json", str(file)]
    done = bench(*words, work=forking)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    assert set(result) == {"command", "machine", "settings", "arms"}
    assert result["settings"]["queue"] == 256
    assert result["machine"]["torch"]
    # The arms that these are compared with are added.
    assert list(result["arms"]) == ["none", "dense", "queries", "plain"]
    for row in result["arms"].values():
        assert len(row["seconds"]) == 1
        assert row["peak_mib"] >= row["before_mib"] > 0
        assert len(row["to_none"]) == len(row["to_dense"]) == 3
    assert result["arms"]["none"]["extra_percent"] == 0
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert any("dense, 4 queries" in row for row in rows)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--arms", "denze"], "--arms: unknown arm 'denze'; did you mean 'dense'?"),
        (["--rounds", "0"], "argument --rounds: '0' must be a whole number of at least 1"),
        (["--arms", "none", "--model", "vit_tny"], "Unknown model (vit_tny)"),
    ],
)
def test_a_mistake_is_one_line(arguments, told):
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_the_input_pipeline(tmp_path):
    file = tmp_path / "bench.json"
    done = bench("--count", "4", "--rounds", "2", "--json", str(file), name="input_pipeline.py")
    assert done.returncode == 0, done.stderr
    rates = json.loads(file.read_text())["images_per_second"]
    assert list(rates) == ["decode", "decode and crops", "ours, worker", "ours, all", "torchvision"]
    assert all(len(rate) == 2 for rate in rates.values())
    assert all(number > 0 for rate in rates.values() for number in rate)
    assert len(done.stdout.splitlines()) == 2 + len(rates)


def test_runs_with_different_threads(tmp_path):
    file = tmp_path / "bench.json"
    words = ["--only", "1 thread", "--runs", "1", "--seconds", "0.1", "--rounds", "1"]
    words += ["--json", str(file)]
    done = bench(*words, name="threads.py", work=forking)
    assert done.returncode == 0, done.stderr
    rates = json.loads(file.read_text())["images_per_second"]
    assert list(rates) == ["1 thread", "1 thread, beside a busy process"]
    assert all(rate > 0 for values in rates.values() for rate in values)
    assert len(done.stdout.splitlines()) == 2 + len(rates)


NETWORK = '{"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}'


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], ["bare, ms", "trainer, ms", "trainer / bare"]),
        (["--checkpoint"], ["the step waits, s", "written after, s", "waits / written",
                            "size, MiB", "until its first step, s"]),
    ],
)  # fmt: skip
def test_the_training_loop(tmp_path, flags, wanted):
    file = tmp_path / "bench.json"
    done = bench("--model-kwargs", NETWORK, "--batch", "2", "--steps", "2", "--rounds", "2",
                 "--threads", "1", "--json", str(file), *flags, name="train_loop.py")  # fmt: skip
    assert done.returncode == 0, done.stderr
    numbers = json.loads(file.read_text())["numbers"]
    assert list(numbers) == wanted
    assert all(len(values) > 0 for values in numbers.values())
    assert all(value > 0 for values in numbers.values() for value in values)


def test_evaluation(tmp_path):
    file = tmp_path / "bench.json"
    small = ["--share", "50", "--train-rows", "3000", "--test-rows", "50", "--rounds", "1"]
    small += ["--model-kwargs", NETWORK, "--batch", "2", "--precision", "bf16"]
    words = ["--only", "throughput,recompute", *small, "--json", str(file)]
    done = bench(*words, name="evaluate.py", work=forking)
    assert done.returncode == 0, done.stderr
    assert "predict / bare" in done.stdout
    assert "again" in done.stdout
    assert json.loads(file.read_text())
