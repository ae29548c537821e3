"""Made-up outputs, ways to damage their files, and commands that must survive each of them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densevit.cli.main import main
from densevit.cli.sweep import main_sweep
from densevit.config.evaluation_names import benchmark_names
from densevit.config.identity import SCHEMA_VERSION
from densevit.evaluate.predictions import ClassPredictions, write_predictions
from densevit.launch.slurm import submissions
from densevit.launch.slurm.attempts import Limits
from densevit.results.tables import frozen_numbers
from densevit.runs.directory import RunFolder
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan, make_plan
from densevit.utils.files import write_json

START = 1_700_000_000.0
SWEEP = """\
name: damaged
fixed: {dataset: shapes, model_kwargs: {img_size: 32, patch_size: 4, depth: 1}, epochs: 4,
        warmup_epochs: 0, device: cpu, workers: 0}
grid: {cl_mode: [none, dense]}
baseline: {cl_mode: none}
seeds: 3
"""


class MadeUp(NamedTuple):
    """A sweep whose runs are finished, but for one that failed and one that has not started."""

    plan: Plan
    finished: Run
    failed: Run
    pending: Run


def make_outputs(folder: Path) -> MadeUp:
    """Write FOLDER/sweep.yaml and FOLDER/outputs, with every kind of file that a sweep has."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sweep.yaml"
    file.write_text(SWEEP)
    plan = make_plan(file, folder / "outputs")
    none, dense = (
        [run for run in plan.runs if run.config.cl_mode == mode] for mode in ("none", "dense")
    )
    made = MadeUp(plan, none[0], none[2], dense[2])
    for run in plan.runs:
        if run != made.pending:
            _write_run(plan.run_folder(run), run, failed=run == made.failed)
    _write_sweep(made)
    return made


def _write_run(folder: RunFolder, run: Run, *, failed: bool) -> None:
    from densevit.data.datasets import open_data
    from densevit.evaluate.measured_on import measured_on

    folder.create(run.config)
    top1 = 60.0 + run.seed + (run.config.cl_mode == "dense")
    start = {"time": START, "host": "here", "command": "densevit train", "git_sha": "abc",
             "git_diff": None, "versions": {"torch": "2.8"}, "threads": 1}  # fmt: skip
    write_json(folder.provenance_file, {"starts": [start]})
    write_json(folder.fingerprint_file, measured_on(run.config, open_data(run.config, 32), 32))
    attempt = {"job": "1", "restart": 0, "node": "n1", "started": START, "first_step": 0,
               "last_step": 8, "ended": START + 9, "end": "finished"}  # fmt: skip
    write_json(folder.attempts_file, {"attempts": [attempt]})
    lines = [
        {"step": step, "epoch": step / 2, "time": START + step, "train/loss": 1 / step,
         "train/images_per_second": 100.0, "train/peak_memory_mib": 10.0, "time/data_ms": 1.0,
         "val/top1": top1, "health/patch_rank": 3.0}
        for step in range(1, 9)
    ]  # fmt: skip
    folder.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.log_file.write_text("a line of the log\n")
    facts = {"epoch": 4, "epochs": 4, "step": 8, "steps": 8, "started": START, "spent": 9.0}
    if failed:
        folder.write_status("failed", **facts, message="the loss was not finite", cause="nan")
        return
    numbers = {"top1": top1, "top5": 90.0, "nll": 1.0, "ways": 10, "n": 500}
    write_json(
        folder.results_file,
        {
            "run": run.id, "cell": run.cell, "seed": run.seed, "schema_version": SCHEMA_VERSION,
            "epochs": 4, "train_seconds": 8.0,
            "benchmarks": {name: dict(numbers) for name in benchmark_names(run.config)},
            "metrics_bytes": folder.metrics_file.stat().st_size,
        },
    )  # fmt: skip
    folder.write_status("finished", **facts, top1=top1)
    _write_predictions(folder)


def _write_predictions(folder: RunFolder) -> None:
    answers = ClassPredictions(
        "val", ("a", "b"), [f"{n}" for n in range(10)], np.arange(10, dtype=np.int32) % 2,
        np.zeros((10, 2), np.int32) + np.array([0, 1], np.int32), np.full((10, 2), 0.5, np.float32),
        np.full(10, 0.7, np.float32), anywhere=None, among={},
    )  # fmt: skip
    write_predictions(answers, folder.predictions_file("val"), "made up")


def _write_sweep(made: MadeUp) -> None:
    from densevit.cost.speeds import FORMAT
    from densevit.launch.decide import RunActions
    from densevit.launch.prepare import prepare
    from densevit.results.collect.numbers import collect

    plan = made.plan
    prepare(plan, RunActions((), (), (), ()))
    frozen_numbers.freeze(plan, collect(plan), "paper")
    speed = {"device": "cpu", "on_gpu": False, "processes": 1, "steps": [0.1, 0.1], "startup": 1.0,
             "look": 0.1, "evaluation": 0.1, "evaluated_picture": 0.001,
             "pictures": {"train": 4000}, "measured": START}  # fmt: skip
    from densevit.cost.speeds import wanted_probes

    places = {"here": {probe.key: speed for probe in wanted_probes(plan)}}
    write_json(plan.folder / "estimate.json", {"format": FORMAT, "places": places})
    submission = submissions.Submission(
        plan.folder / "submissions" / "20260101-000000-abcdef", plan.name, "nobody",
        {"gpus": 0}, [[made.pending.id]], [submissions.Chunk("damaged", 0, 1, "17")],
        canary=True, code="", limits=Limits(2, 2), signal_seconds=60,
    )  # fmt: skip
    submissions.write(submission)
    submission.write_canary_result(True)
    store = {"store": "sqlite:////nowhere.db", "mlflow_run_id": "1", "experiment_id": "1",
             "status": "FINISHED", "state": "finished", "offset": 8, "mark": "", "files": {},
             "last_steps": {}, "sweeps": {}}  # fmt: skip
    write_json(plan.folder / "tracking.json", store)
    write_json(plan.run_folder(made.finished).tracking_file, store)


@dataclass(frozen=True)
class Damage:
    """A way to damage a file: its name, and a function that does it."""

    name: str
    apply: Callable[[Path], None]


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: void(path.write_bytes(content))


def void(_value: object) -> None:
    """Drop a value, in a lambda of a type that returns none."""


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)  # a circle; permissions do not bind root


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)  # opening it waits for a writer


WHOLE = (
    Damage("list", _bytes(b"[]")),
    Damage("empty object", _bytes(b"{}")),
    Damage("null", _bytes(b"null")),
    Damage("number", _bytes(b"5")),
    Damage("text", _bytes(b'"text"')),
    Damage("empty", _bytes(b"")),
    Damage("list of lists", _bytes(b"[[]]")),
    Damage("deep lists", _bytes(b"[" * 10_000 + b"]" * 10_000)),
    Damage("deep objects", _bytes(b'{"a":' * 10_000 + b"1" + b"}" * 10_000)),
    Damage("not UTF-8", _bytes(b'{"state": "\xff\xfe"}')),
    Damage("half a letter", _bytes(b'{"state": "\\ud800", "starts": "\\ud800"}')),
    Damage("zeros", _bytes(b"\0" * 100)),
    Damage("long number", _bytes(b'{"step": ' + b"9" * 5000 + b"}")),
    Damage("truncated", _truncate),
    Damage("folder", _folder),
    Damage("unreadable", _unreadable),
    Damage("pipe", _pipe),
)

DELETED = object()
VALUES: dict[str, Any] = {
    "deleted": DELETED, "null": None, "list": [], "object": {}, "text": "text", "number": 5,
    "negative": -1, "NaN": float("nan"), "infinite": float("inf"), "huge": 10**400,
    "1e308": 1e308, "true": True, "list of null": [None], "object of null": {"a": None},
    "half a letter": "\ud800", "path": "../../etc", "escape": "\x1b[31m\n",
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of each value in JSON data, the first of each list and of similar objects."""
    if path:
        yield path
    if isinstance(value, dict):
        seen = set()
        for key, part in value.items():
            shape = (type(part), *part) if isinstance(part, dict) else key
            if shape not in seen:  # of benchmarks with equal keys, one
                seen.add(shape)
                yield from places(part, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of data with another value at a place."""
    data = copy.deepcopy(data)
    part = data
    for key in place[:-1]:
        part = part[key]
    if value is DELETED:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return data


def _write_changed(place: tuple[Any, ...], value: Any, lines: bool) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        if lines:
            all_lines = path.read_text().splitlines()
            all_lines[1] = json.dumps(changed(json.loads(all_lines[1]), place, value))
            path.write_text("\n".join(all_lines) + "\n")
        else:
            path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))

    return apply


def of_keys(path: Path) -> Iterator[Damage]:
    """Yield the damages of a file in which one value is another one, or missing."""
    lines = path.suffix == ".jsonl"
    text = path.read_text()
    data = json.loads(text.splitlines()[1]) if lines else json.loads(text)
    for place in places(data):
        if "config" in place[:-1] and place[-1] not in ("epochs", "dataset", "benchmarks"):
            continue
        for name, value in VALUES.items():
            where = ".".join(map(str, place))
            yield Damage(f"{where}: {name}", _write_changed(place, value, lines))


def damaged_files(made: MadeUp) -> dict[str, Path]:
    """Return the files to damage, by a name."""
    run, failed, sweep = (
        made.plan.run_folder(made.finished), made.plan.run_folder(made.failed), made.plan.folder,
    )  # fmt: skip
    names = ("config.yaml", "identity.json", "provenance.json", "fingerprint.json", "status.json",
             "metrics.jsonl", "results.json", "attempts.json", "tracking.json")  # fmt: skip
    found = {name: run.path / name for name in names}
    found |= {f"failed {name}": failed.path / name for name in ("status.json", "attempts.json")}
    submission = next((sweep / "submissions").iterdir())
    return {
        **found,
        "plan.json": sweep / "plan.json",
        "estimate.json": sweep / "estimate.json",
        "sweep's tracking.json": sweep / "tracking.json",
        "frozen": sweep / "frozen" / "paper.json",
        "submission.json": submission / "submission.json",
        "canary.json": submission / "canary.json",
    }


def commands(made: MadeUp) -> dict[str, Callable[[], int]]:
    """Return the quick commands that read such files, by name; each returns its exit code."""
    file, outputs = str(made.plan.spec.file), ["--outputs", str(made.plan.outputs)]
    run, other = made.finished.id, made.plan.runs[1].id

    def sweep(name: str, *words: str) -> Callable[[], int]:
        return lambda: main_sweep([name, file, *words, *outputs])

    return {
        "status": sweep("status"),
        "status --json": sweep("status", "--json"),
        "plan": sweep("plan"),
        "plan --json": sweep("plan", "--json"),
        "plan --diff": lambda: main_sweep(["plan", "--diff", file, file, *outputs]),
        "run --dry-run": sweep("run", "--dry-run"),
        "explain": sweep("explain", run),
        "explain a failed run": sweep("explain", made.failed.id),
        "explain a pending run": sweep("explain", made.pending.id),
        "logs": sweep("logs", run),
        "logs --failed": sweep("logs", "--failed"),
        "cancel": sweep("cancel", "--yes"),
        "compare cells": lambda: main(["compare", file, "cl_mode=none", "cl_mode=dense", *outputs]),
        "compare runs": lambda: main(["compare", run, other, *outputs]),
        "eval --from-predictions": lambda: main(["eval", run, "--from-predictions", *outputs]),
    }


def slow_commands(made: MadeUp) -> dict[str, Callable[[], int]]:
    """Return the commands that take longer, or would start something that a test replaces."""
    file, outputs = str(made.plan.spec.file), ["--outputs", str(made.plan.outputs)]
    run, copy = made.finished.id, str(made.plan.outputs / "x.safetensors")
    folder = str(made.plan.run_folder(made.finished).path)
    return {
        "report --format csv": lambda: main_sweep(["report", file, "--format", "csv", *outputs]),
        "report": lambda: main_sweep(["report", file, *outputs]),
        "retry": lambda: main_sweep(["retry", file, "--failed", "--no-tracking", *outputs]),
        "eval": lambda: main(["eval", run, "--device", "cpu", *outputs]),
        "export": lambda: main(["export", run, "--to", copy, *outputs]),
        "train": lambda: main(["train", "--run-dir", folder]),
        "sync": lambda: main(["sync", made.plan.name, *outputs]),
    }


class Outcome(NamedTuple):
    """What a command did: its exit code, its output, and the error that it let pass, if any."""

    code: int | None
    out: str
    err: str
    error: BaseException | None

    @property
    def is_wrong(self) -> bool:
        return self.error is not None or self.code not in (0, 1, 2, 75) or "Traceback" in self.err


class Hangs(BaseException):
    """A command took too long."""


def call(command: Callable[[], int], seconds: int = 60) -> Outcome:
    """Call a command in this process; stop it after some seconds, or a twelfth of that at work.

    What a busy machine does not slow down is the time of the processor: five seconds of it.
    """

    def stop(*_: object) -> None:
        raise Hangs(f"more than {seconds} s, or {seconds / 12} s of the processor")

    before = [(number, signal.signal(number, stop)) for number in (signal.SIGALRM, signal.SIGPROF)]
    signal.alarm(seconds)
    signal.setitimer(signal.ITIMER_PROF, seconds / 12)
    out, err = io.StringIO(), io.StringIO()
    code, error = None, None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 2
    except (Exception, Hangs) as problem:
        error = problem
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before:
            signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue(), error)


def harmed(made: MadeUp) -> list[tuple[str, Path, Damage]]:
    """Return each file with each of its damages."""
    return [
        (name, path, damage)
        for name, path in damaged_files(made).items()
        for damage in (*WHOLE, *(of_keys(path) if path.suffix != ".yaml" else ()))
    ]


def sampled(made: MadeUp, count: int, seed: int) -> list[tuple[str, Path, Damage, str, Any]]:
    """Return some cases: file, damage and command; all files and both kinds of damage alike."""
    chosen, calls = random.Random(seed), list(commands(made).items())
    by_kind: dict[tuple[str, bool], list[tuple[str, Path, Damage]]] = {}
    for case in harmed(made):
        by_kind.setdefault((case[0], case[2] in WHOLE), []).append(case)
    kinds = list(by_kind.values())
    return [(*chosen.choice(kinds[n % len(kinds)]), *chosen.choice(calls)) for n in range(count)]


def restored(original: Path, to: Path) -> None:
    """Replace a folder by a copy of another."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(original, to, symlinks=True)
