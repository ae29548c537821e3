"""Measure the launcher ray against Ray Tune itself; a part of `sweep_scale.py`.

Runs train a tiny network on a few images, on a Ray of two processors on this machine:

- overhead: runs of a few seconds by our launcher, against plain Tune that calls the same training
  in reused actors, without separate processes; from the first trial to the last, with actors and
  imports but without Ray's own start; the two take turns.
- gap: one run after the other in one slot: from a run's last status to the next one's first step.
- memory: the largest resident set of a command with many short runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, in_own_process
from PIL import Image

from densevit.runs.directory import RunFolder
from densevit.runs.metrics_file import read_metrics
from densevit.utils.errors import RunError, UserError
from densevit.utils.files import read_json

CPUS = 2
LONG, LONG_RUNS = 60, 12  # epochs of a run of some seconds; number of runs
TINY = {
    "dataset": "few", "model_name": "vit_tiny_patch16_224", "batch_size": 8, "warmup_epochs": 0,
    "model_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "cl_mode": "none", "workers": 0, "device": "cpu", "benchmarks": {},
}  # fmt: skip


def ray(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Return the three quantities, each from a separate process."""
    write_pictures(folder / "few")
    ours, plain = [], []
    for number in range(options.rounds):
        long = write_sweep(folder / f"long{number}", LONG_RUNS, LONG)
        ours.append(in_own_process(_ours, long))
        long = write_sweep(folder / f"plain{number}", LONG_RUNS, LONG)
        plain.append(in_own_process(_plain, long))
    after = write_sweep(folder / "after", 12, 1, max_concurrent=1)
    in_own_process(_ours, after)
    many = write_sweep(folder / "many", options.ray_runs, 1)
    gaps = _gaps(after.parent / "outputs")
    return [
        Row(
            f"{LONG_RUNS} runs on Ray, of plain Tune with the same training", "x",
            [a / b for a, b in zip(ours, plain, strict=True)], goal=1.05,
        ),
        Row("one run's end to the next one's first step", "s", gaps, goal=1.0),
        Row(f"the command of {options.ray_runs} runs on Ray: memory", "MiB", [_memory(many)], 1000),
    ]  # fmt: skip


def write_pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    for number, image in enumerate(pixels):
        place = folder / ("train" if number % 2 else "val") / f"c{number % 4 // 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")


def write_sweep(folder: Path, runs: int, epochs: int, **settings: Any) -> Path:
    folder.mkdir()
    fixed = {**TINY, "epochs": epochs, "data_dir": str(folder.parent / "few")}
    record = {"name": "scale", "fixed": fixed, "seeds": runs, "launcher": "ray"}
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({**record, "ray": {"max_concurrent": CPUS, **settings}}))
    return file


def _timed(file: Path, execute: Callable[[Any], object]) -> float:
    """Return the seconds of executing a sweep's runs on a Ray that has started."""
    from densevit.launch.decide import decide
    from densevit.launch.launchers import observe
    from densevit.launch.prepare import prepare
    from densevit.launch.ray.cluster import connected
    from densevit.sweep.plan import make_plan

    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": CPUS})
    plan = make_plan(file, file.parent / "outputs")
    prepare(plan, decide(plan, observe(plan), foreground=True))
    with connected(plan, plan.runs):
        start = time.perf_counter()
        execute(plan)
        seconds = time.perf_counter() - start
    for run in plan.runs:
        status = plan.run_folder(run).status()
        if status.state != "finished":
            raise RunError(f"{file}: a run is {status.state}: {status.message}")
    return seconds


def _ours(file: Path) -> float:
    def execute(plan: Any) -> None:
        from densevit.launch.ray.driver import launch

        launch(plan, plan.runs, lambda progress: None)

    return _timed(file, execute)


def _plain(file: Path) -> float:
    def execute(plan: Any) -> None:
        from ray import tune

        class Plain(tune.Trainable):
            def step(self) -> dict[str, Any]:
                from densevit.train.execute import execute

                return {"code": execute(RunFolder(Path(self.config["folder"]))), "done": True}

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                return True

            def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
                return {}

        folders = [str(plan.run_folder(run).path) for run in plan.runs]
        tune.Tuner(
            tune.with_resources(Plain, {"CPU": 1}),
            param_space={"folder": tune.grid_search(folders)},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=CPUS),
            run_config=tune.RunConfig(
                name="plain", storage_path=str(file.parent / "tune"), verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip

    return _timed(file, execute)


def _gaps(outputs: Path) -> list[float]:
    """Return the seconds between one run and the next."""
    spans = []
    for path in (outputs / "runs").iterdir():
        folder = RunFolder(path)
        first = next(x["time"] for x in read_metrics(folder.metrics_file)[0] if "train/loss" in x)
        spans.append((first, (read_json(folder.status_file) or {})["updated"]))
    spans.sort()
    return [later[0] - earlier[1] for earlier, later in pairwise(spans)]


def _memory(file: Path) -> float:
    """Return the peak memory of the command's own process, in MiB."""
    arguments = ["sweep", str(file), "--no-tracking", "--outputs", str(file.parent / "outputs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "densevit", *arguments], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found.group(1))) if found else peak
        time.sleep(0.2)
    if process.returncode:
        raise UserError(f"{file}: the sweep ended with {process.returncode}")
    return peak / 1024
