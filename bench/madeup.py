"""A made-up sweep: run directories as finished runs leave them, with known effects.

    python bench/madeup.py FOLDER --cells N --seeds S [--predictions] [--failed N] [--pending N]

Nothing is trained. `make_sweep` writes FOLDER/sweep.yaml and the runs in FOLDER/outputs. `Effects`
holds what is planted. The command prints the sweep file, for `densevit-sweep report FILE --outputs
FOLDER/outputs`. The same arguments give the same numbers; the times in the files are made up too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator

from densevit.cli.parser import positive
from densevit.config.identity import SCHEMA_VERSION, identity
from densevit.config.loss_modes import applies
from densevit.config.run_config import RunConfig
from densevit.runs.directory import RunFolder
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan, make_plan
from densevit.utils.errors import EXIT_MISTAKE, UserError

START = 1_700_000_000.0  # Unix seconds: when every run began
STEPS = 100  # an epoch
MOST_QUEUES = 16
USUAL_TEMPERATURE = 0.2  # at which the temperature costs nothing


class Shift(NamedTuple):
    """A test set: the points that its accuracy lies below val's, and those that dense recovers.

    Then its numbers of classes and images, and how much higher clean accuracy is among its classes.
    """

    drop: float
    dense: float
    ways: int
    pictures: int
    matched: float = 0.0


BENCHMARKS: dict[str, Shift] = {
    "val": Shift(0.0, 0.0, 1000, 50_000),
    "imagenet-a": Shift(48.0, 0.0, 200, 7_500, 12.0),
    "imagenet-r": Shift(30.0, 1.0, 200, 30_000, 9.0),
    "imagenet-v2": Shift(11.0, 0.0, 1000, 10_000),
    "imagenet-sketch": Shift(37.0, 2.0, 1000, 50_889),
    "stylized-imagenet": Shift(50.0, 3.0, 1000, 50_000),
}


@dataclass(frozen=True)
class Effects:
    """The planted effects, in points of accuracy.

    levels: val accuracy of each cl_mode at the usual temperature. temperature: the loss for each
    doubling or halving away from it. queue: the gain for each doubling of the queue; 0 is a true
    null. shared: standard deviation of what all cells share under a seed, which pairing by seed
    removes. own: that of each run alone, and half as much for each of its test sets.
    """

    levels: Mapping[str, float] = field(
        default_factory=lambda: {"none": 60.0, "global": 61.0, "dense": 63.0, "joint": 63.0}
    )
    temperature: float = 1.0
    queue: float = 0.0
    shared: float = 0.8
    own: float = 0.4

    def accuracy(self, config: RunConfig, benchmark: str) -> float:
        """Return the accuracy without noise, in percent."""
        shift = BENCHMARKS[benchmark]
        value = self.levels[config.cl_mode] - shift.drop
        if applies("temperature", config):
            value -= self.temperature * abs(math.log2(config.temperature / USUAL_TEMPERATURE))
            value += self.queue * math.log2(config.queue_size / 1024)
        return value + (shift.dense if config.cl_mode in ("dense", "joint") else 0.0)


def make_sweep(
    folder: Path, cells: int, seeds: int, *, effects: Effects | None = None, seed: int = 0,
    epochs: int = 10, predictions: bool = False, pictures: int = 200, failed: int = 0,
    pending: int = 0,
) -> Plan:  # fmt: skip
    """Write a sweep file and the run directories of `cells` times `seeds` runs; return the plan.

    The cells are `cl_mode: none`, the baseline, and `global` and `dense` over temperatures and
    queue sizes; for an even number one is left out, so that the grid has a hole. Each run has a
    `metrics.jsonl` with about three lines per epoch and a `results.json` with all of `BENCHMARKS`.
    With `predictions` each test set has `pictures` images, which are equally hard for every run,
    and Parquet files, from which `evaluate.metrics.score` computes the metrics.

    Of the last runs, `pending` have not started, and `failed` before them failed half-way. The
    plan's outputs are FOLDER/outputs. About 1000 runs per second without predictions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sweep.yaml"
    record = sweep_record("made-up", cells, seeds, epochs)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")  # JSON is YAML
    plan = make_plan(file, folder / "outputs")
    started = plan.runs[: len(plan.runs) - pending]
    images = pictures if predictions else 0
    finished = len(started) - failed
    write_runs(plan, started[:finished], effects=effects, seed=seed, pictures=images)
    write_runs(plan, started[finished:], effects=effects, seed=seed, pictures=images, fail=True)
    return plan


def write_runs(
    plan: Plan, runs: Sequence[Run], *, effects: Effects | None = None, seed: int = 0,
    pictures: int = 0, fail: bool = False,
) -> None:  # fmt: skip
    """Write the directories of some runs, over existing ones; another seed gives other numbers.

    Without `pictures` there are no predictions.
    """
    for run in runs:
        made = _RunNumbers(run, effects or Effects(), seed, pictures)
        _write_run(plan.run_folder(run), made, fail)


def sweep_record(name: str, cells: int, seeds: int, epochs: int) -> dict[str, Any]:
    """Return the sweep file's content. Errors: `UserError` for less than one cell or seed."""
    if min(cells, seeds) < 1:
        raise UserError("--cells and --seeds: must be 1 or more")
    half = -(-(cells - 1) // 2)  # of each of the two losses
    queues = [1024 * 2**n for n in range(_width(half))]
    temperatures = _temperatures(half // len(queues))
    fixed: dict[str, Any] = {
        "dataset": "imagenet", "epochs": epochs, "warmup_epochs": 0, "log_every": STEPS,
        "workers": 1,
        "benchmarks": {benchmark: None for benchmark in BENCHMARKS if benchmark != "val"},
    }  # fmt: skip
    record: dict[str, Any] = {
        "name": name, "description": "Made-up runs with known effects: nothing was trained.",
        "fixed": fixed, "seeds": seeds, "baseline": {"cl_mode": "none"},
        "resources": {"gpus": 1, "hours": 1},
    }  # fmt: skip
    if half == 0:
        return record | {"grid": {"cl_mode": ["none"]}}
    axes = {"temperature": temperatures, "queue_size": queues}
    record["grid"] = {"cl_mode": ["none", "global", "dense"], **axes}
    if cells % 2 == 0:
        where = {"cl_mode": "global"} | {axis: values[-1] for axis, values in axes.items()}
        record["exclude"] = [{"where": where, "because": "a hole in the grid"}]
    return record


def _width(count: int) -> int:
    """Return the largest divisor up to the root, so that the grid is as square as possible."""
    widest = min(MOST_QUEUES, math.isqrt(count))
    return next((n for n in range(widest, 0, -1) if count % n == 0), 1)


def _temperatures(count: int) -> list[float]:
    """Return `count` different temperatures around the usual one, evenly on a log scale."""
    if count <= 1:
        return [USUAL_TEMPERATURE]
    return [round(0.05 * 16 ** (n / (count - 1)), 6) for n in range(count)]


class _RunNumbers:
    """The numbers of a run, which follow from the run and the seed of the sweep."""

    def __init__(self, run: Run, effects: Effects, seed: int, pictures: int) -> None:
        self.run, self.pictures, self.seed = run, pictures, seed
        self.epochs = epochs = run.config.epochs
        self.random = np.random.default_rng([seed, int(run.cell, 16), run.seed])
        common = np.random.default_rng([seed, run.seed]).normal(0.0, effects.shared)
        base = common + self.random.normal(0.0, effects.own)
        noise = base + self.random.normal(0.0, effects.own / 2, len(BENCHMARKS))
        noise[0] = base
        self.accuracies = {
            name: min(max(effects.accuracy(run.config, name) + float(extra), 0.0), 100.0)
            for name, extra in zip(BENCHMARKS, noise, strict=True)
        }
        self.speed = {"none": 900.0, "global": 800.0}.get(run.config.cl_mode, 700.0)
        self.speed *= 1 + 0.02 * float(self.random.standard_normal())
        self.seconds = epochs * STEPS * run.config.batch_size / self.speed

    def results(self, folder: RunFolder) -> dict[str, dict[str, float]]:
        """Return the metrics of each test set; write the predictions behind them, if any."""
        if not self.pictures:
            return {name: self._numbers(name) for name in BENCHMARKS}
        from densevit.evaluate.metrics import score
        from densevit.evaluate.predictions import write_predictions

        found, clean = {}, None
        for name in BENCHMARKS:
            answers = _answers(name, self.accuracies[name], self.pictures, self.seed, self.random)
            write_predictions(answers, folder.predictions_file(name))
            clean = clean or answers
            found[name] = score(answers, None if name == "val" else clean)
        return found

    def _numbers(self, name: str) -> dict[str, float]:
        shift = BENCHMARKS[name]
        top1 = round(self.accuracies[name] * shift.pictures / 100) * 100 / shift.pictures
        half = 196 * math.sqrt(top1 / 100 * (1 - top1 / 100) / shift.pictures)
        numbers = {
            "top1": top1, "top1_low": top1 - half, "top1_high": top1 + half,
            "top5": top1 + 0.6 * (100 - top1), "nll": 4.6 * (1 - top1 / 100) + 0.1,
            "ece": 3 + 0.05 * (100 - top1), "ways": shift.ways, "n": shift.pictures,
        }  # fmt: skip
        if name != "val":
            clean = self.accuracies["val"] + shift.matched
            numbers["matched_clean"] = min(clean, 100.0)
        return numbers

    def lines(self, final: Mapping[str, float] | None, epochs: int) -> list[dict[str, float]]:
        """Return the lines of `metrics.jsonl`: training, health, val, and at its end `final`."""
        contrast = self.run.config.cl_mode != "none"
        health = _health(contrast, self.run.config.cl_mode == "dense", epochs, self.random)
        lines = [self._line(0, health[0])]
        jitter = self.random.normal(0.0, 0.3, epochs)
        for epoch in range(1, epochs + 1):
            grown = 1 - math.exp(-4 * epoch / self.epochs)
            lines.append(self._line(epoch, self._training(grown, contrast)))
            lines.append(self._line(epoch, health[epoch]))
            if epoch < self.epochs:
                top1 = max(self.accuracies["val"] * grown + float(jitter[epoch - 1]), 0.0)
                val = {"val/top1": top1, "val/top5": top1 + 0.6 * (100 - top1)}
                lines.append(self._line(epoch, val | {"val/nll": 4.6 * (1 - top1 / 100) + 0.1}))
        return lines + ([] if final is None else [self._line(epochs, final)])

    def _line(self, epoch: int, numbers: Mapping[str, float]) -> dict[str, float]:
        time = START + self.seconds * epoch / self.epochs
        return {"step": epoch * STEPS, "epoch": float(epoch), "time": time, **numbers}

    def _training(self, grown: float, contrast: bool) -> dict[str, float]:
        step = 1000 * self.run.config.batch_size / self.speed  # milliseconds
        shares = {"data": 0.05, "augment": 0.05, "forward": 0.3, "backward": 0.5, "optimizer": 0.1}
        line = {
            "train/loss": 6.9 - 4 * grown, "train/classification_loss": 6.9 - 4 * grown,
            "train/top1": self.accuracies["val"] * grown,
            "train/learning_rate": 1e-5 * (1.001 - grown), "train/images_per_second": self.speed,
            **{f"time/{phase}_ms": share * step for phase, share in shares.items()},
            "train/peak_memory_mib": 9000.0 if contrast else 7000.0, "train/skipped_steps": 0.0,
        }  # fmt: skip
        if contrast:
            line |= {"train/contrastive_loss": 9.0 - 3 * grown, "train/lambda": 0.5,
                     "train/temperature": self.run.config.temperature}  # fmt: skip
        return line


def _health(contrast: bool, dense: bool, epochs: int, random: Generator) -> list[dict[str, float]]:
    """Return the feature health before the first epoch and after each."""
    names = ["image_rank", "patch_rank", "match_precision", "unique_match_share"]
    first, last = [12.0, 30.0, 0.3, 0.5], [60.0, 120.0, 0.8 if dense else 0.6, 0.6]
    if contrast:
        kind = "dense" if dense else "global"
        names += [f"{kind}_{what}" for what in (
            "effective_rank", "feature_std", "alignment", "uniformity", "positive_similarity",
            "negative_similarity", "queue_diversity", "queue_age",
        )]  # fmt: skip
        first += [8.0, 0.5, 0.8, -1.0, 0.6, 0.5, 0.4, 10.0]
        last += [70.0, 0.95, 0.4, -3.0, 0.8, 0.05, 0.9, 10.0]
    share = np.linspace(0.0, 1.0, epochs + 1)[:, None]
    values = np.array(first) + (np.array(last) - np.array(first)) * share
    values *= 1 + 0.02 * random.standard_normal(values.shape)
    extra = {"health/collapsed": 0.0} if contrast else {}
    keys = [f"health/{name}" for name in names]
    return [dict(zip(keys, row, strict=True)) | extra for row in values.tolist()]


def _answers(name: str, accuracy: float, pictures: int, seed: int, random: Generator) -> Any:
    """Return predictions of which as many are right as the accuracy states.

    How easy an image is for all runs and how easy for this one count equally in who gets it right,
    so that the hits of two runs correlate.
    """
    from densevit.evaluate.predictions import ClassPredictions

    ways = min(BENCHMARKS[name].ways, pictures)
    labels = np.arange(pictures, dtype=np.int32) % ways
    fixed = np.random.default_rng([seed, [*BENCHMARKS].index(name)])
    ease = fixed.standard_normal(pictures) + random.standard_normal(pictures)
    order = np.argsort(-ease)
    place = np.full(pictures, 5)  # of the right class among the five
    right = round(accuracy * pictures / 100)
    place[order[:right]] = 0
    place[order[right : right + (pictures - right) // 2]] = 1
    width = min(5, ways)
    top = (labels[:, None] + np.arange(width) - place[:, None]) % ways
    top[place == 5] = (labels[place == 5, None] + 1 + np.arange(width)) % ways
    falling = np.array([0.5, 0.2, 0.1, 0.05, 0.02][:width])
    probabilities = np.broadcast_to(falling, (pictures, width)).astype(np.float32)
    losses = np.where(place == 0, 0.7, np.where(place == 1, 1.6, 5.0)).astype(np.float32)
    classes = tuple(f"n{number:08d}" for number in range(ways))
    samples = [f"{classes[label]}/{name}-{i}.jpg" for i, label in enumerate(labels)]
    return ClassPredictions(
        name, classes, samples, labels, top.astype(np.int32), probabilities, losses,
        anywhere=None, among={},
    )  # fmt: skip


def _write_run(folder: RunFolder, made: _RunNumbers, fails: bool) -> None:
    """Write a run's files without syncing: waiting for the disk takes a hundred times as long."""
    run, epochs = made.run, made.epochs // 2 if fails else made.epochs
    folder.path.mkdir(parents=True, exist_ok=True)
    _write(folder.config_file, run.config.model_dump())
    _write(folder.identity_file, identity(run.config)._asdict())
    start = {"time": START, "host": "made-up", "command": "made up", "git_sha": None}
    _write(folder.provenance_file, {"starts": [{**start, "versions": {}, "git_diff": None}]})
    results = None if fails else made.results(folder)
    final = None
    if results is not None:
        final = {
            f"{name}/{key}": float(value)
            for name, numbers in results.items()
            for key, value in numbers.items()
            if key not in ("n", "ways")
        }
    lines = made.lines(final, epochs)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder.metrics_file.write_text(text, encoding="utf-8")
    message = "the loss was not finite" if fails else ""
    folder.log_file.write_text(f"made-up run {run.id}\n{message or 'finished'}\n", encoding="utf-8")
    if results is not None:
        record = {
            "run": run.id, "cell": run.cell, "seed": run.seed, "schema_version": SCHEMA_VERSION,
            "epochs": epochs, "train_seconds": made.seconds, "benchmarks": results,
            "metrics_bytes": len(text),
        }  # fmt: skip
        _write(folder.results_file, record)
    spent = 1.1 * made.seconds * epochs / made.epochs
    status = {
        "state": "failed" if fails else "finished", "epoch": epochs, "epochs": made.epochs,
        "step": epochs * STEPS, "steps": made.epochs * STEPS, "started": START, "spent": spent,
        "top1": None if results is None else results["val"]["top1"], "message": message,
        "cause": "nan" if fails else "", "updated": START + spent, "host": "made-up", "pid": 1,
    }  # fmt: skip
    _write(folder.status_file, status)


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("madeup.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="where the sweep is written")
    add("--cells", type=positive, default=9, help="(%(default)s)")
    add("--seeds", type=positive, default=5, help="(%(default)s)")
    add("--predictions", action="store_true", help="also write the predictions of each image")
    add(
        "--pictures",
        type=positive,
        default=200,
        help="images of each test set with --predictions (%(default)s)",
    )
    add("--failed", type=int, default=0, metavar="N", help="runs that fail (%(default)s)")
    add(
        "--pending",
        type=int,
        default=0,
        metavar="N",
        help="runs that have not started (%(default)s)",
    )
    add("--seed", type=int, default=0, help="seed of the made-up numbers (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        plan = make_sweep(
            given.folder, given.cells, given.seeds, seed=given.seed, failed=given.failed,
            pending=given.pending, predictions=given.predictions, pictures=given.pictures,
        )  # fmt: skip
    except UserError as error:
        print(f"madeup.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    print(plan.spec.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
