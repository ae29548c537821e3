"""Measure mirroring runs to MLflow: its cost for training, and the wait for it.

    python bench/tracking.py [--only hot,step,bulk,sync] [--rounds N] [--json FILE]

    hot   the cost for training of a logged line of 25 numbers, with reading the system metrics,
          2000 per round; and of a sample of the machine, which another thread takes, 50 per round
    step  steps of --step-ms of work on one thread, each of them logged, beside a mirror process
          that reads every --every seconds, and beside one that is held (SIGSTOP), in turns of one
          such interval; the difference of a third kind of turns, held again, is the noise
    bulk  `mirror_once` of a run of --steps steps of 20 metrics, and of a twentieth of them, into an
          SQLite file that has its tables and nothing else, and into an MLflow server on this
          machine (of 2 workers, on PostgreSQL if that is installed); each value must be in the
          database exactly once
    sync  `densevit sync` of a sweep of --runs runs that is up to date, as a command, with the start
          of Python; the first time, which reads its files from the disk, is left out

Prints a Markdown table of medians with the goal of each and the ratio to it; a ratio up to 1
reaches the goal. `--json` writes all of it. The servers are those of the tests.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness import Row, seconds_of, selected, table, write_record

from densevit.cli.parser import positive
from densevit.utils.errors import EXIT_FAILED, RunError, UserError

# No torch and no MLflow up here: the mirror's helper processes import this file too.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "tracking"))

NUMBERS = 25  # of a logged line, with step, epoch and time
METRICS = 20  # of a line in bulk


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser("tracking.py", description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("--only", default=",".join(MEASUREMENTS), metavar="NAMES", help="of %(default)s (all)")
    add("--rounds", type=positive, default=3, help="(%(default)s)")
    add("--step-ms", type=float, default=100.0, help="of work a step (%(default)s)")
    add(
        "--every",
        type=float,
        default=1.0,
        help="seconds from read to read (%(default)s; else 5)",
    )
    add("--turns", type=positive, default=10, help="of each kind in step (%(default)s)")
    add("--steps", type=positive, default=10_000, help="of bulk (%(default)s)")
    add("--runs", type=positive, default=100, help="of the sweep in sync (%(default)s)")
    add("--no-server", action="store_true", help="measure bulk and sync with SQLite only")
    add("--json", type=Path, metavar="FILE", help="write every number")
    options = parser.parse_args(given)
    try:
        names = selected(options.only, MEASUREMENTS)
    except UserError as error:
        parser.error(str(error))
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]  # the caller's store must not be used
    rows = []
    try:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                rows += MEASUREMENTS[name](Path(folder), options)
    except RunError as error:
        print(f"tracking.py: {error}", file=sys.stderr)
        return EXIT_FAILED
    print(table(rows))
    if options.json:
        write_record(options.json, "tracking.py", given, rows=[row._asdict() for row in rows])
    return 0


def hot(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the microseconds that a logged line delays training, and the share of samples."""
    from densevit.train.system_metrics import SECONDS, SystemMetrics, _machine

    gauges, trainer = SystemMetrics(_machine()), _trainer(folder / "metrics.jsonl")
    medians, samples = [], []
    for _ in range(options.rounds):
        spent, taken = [], []
        for _ in range(50):
            taken.append(seconds_of(gauges._sample))
        sample = gauges._sample()
        samples.append(100 * statistics.median(taken) / SECONDS)
        for _ in range(2000):
            gauges._samples.append(sample)  # as for a line every few seconds
            spent.append(_logged(trainer, gauges.read, NUMBERS - 3 - len(sample)))
        medians.append(1e6 * statistics.median(spent))
    return [
        Row(f"a logged line of {NUMBERS} numbers", "µs", medians, goal=50),
        Row("of a step of 100 ms", "%", [us / 1000 for us in medians], goal=0.1),
        Row(f"a sample, of the {SECONDS:g} s between two", "%", samples, goal=0.04),
    ]


def _trainer(file: Path) -> Any:
    """Return the part of a trainer that `write_line` needs."""
    from densevit.runs.directory import RunFolder
    from densevit.runs.metrics_file import MetricsFile

    folder = RunFolder(file.parent)
    metrics = MetricsFile(file, 0)
    return SimpleNamespace(folder=folder, metrics=metrics, step=0, steps_per_epoch=1000)


def _logged(trainer: Any, work: Callable[[], dict[str, float]], count: int) -> float:
    """Return the seconds of a step that does some work and logs its result and `count` numbers."""
    from densevit.train.trainer import write_line

    line = _numbers("train/number", count)
    start = time.perf_counter()
    trainer.step += 1
    write_line(trainer, line | work())
    return time.perf_counter() - start


def _numbers(name: str, count: int) -> dict[str, float]:
    return {f"{name}{number}": random.random() for number in range(count)}


def step(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure steps with a mirror and without one."""
    import psutil

    from densevit.runs.directory import run_folder
    from densevit.tracking.mirror_process import start_mirror

    runs = [run_folder(folder, _make_run(folder, 0, 0, turn)) for turn in range(3)]
    trainers = [_trainer(run.metrics_file) for run in runs]
    work = _calibrated(options.step_ms)
    steps = range(max(1, round(1000 * options.every / options.step_ms)))
    spent: list[list[list[float]]] = [[], [], []]  # without, with, without again
    mirrored = runs[1]
    with mirrored.lock():
        mirrored.write_status("running")
        mirror = start_mirror(folder, [mirrored.path.name], every=options.every)
        process = psutil.Process(mirror.process.pid)
        try:
            while process.is_running() and not mirrored.tracking_file.exists():
                time.sleep(0.05)
            at_start = sum(process.cpu_times()[:2])
            for number in range(options.turns):
                for turn in (number % 3, (number + 1) % 3, (number + 2) % 3):
                    process.send_signal(signal.SIGCONT if turn == 1 else signal.SIGSTOP)
                    spent[turn].append([_logged(trainers[turn], work, NUMBERS - 4) for _ in steps])
            used = sum(process.cpu_times()[:2]) - at_start
            process.send_signal(signal.SIGCONT)
            if not mirror.stop():
                raise RunError(f"step: the mirror has not sent everything: {mirror.output()}")
        finally:
            mirror.process.kill()
            mirror.process.wait()
    logged = options.turns * len(steps)
    _require(f"sqlite:///{folder / 'mlflow.db'}", logged * (NUMBERS - 3))
    whole = [statistics.median([t for turn in turns for t in turn]) for turns in spent]
    first, *others = [[statistics.median(turn) for turn in turns] for turns in spent]
    pairs, noise = ([a / b for a, b in zip(other, first, strict=True)] for other in others)
    return [
        Row("median step beside a mirror / without", "x", [whole[1] / whole[0]], 1.001),
        Row("turn by turn", "x", pairs, 1.001),
        Row("noise: without again / without", "x", [whole[2] / whole[0]]),
        Row("noise turn by turn", "x", noise),
        Row("a step without", "ms", [1000 * seconds for seconds in first]),
        Row("the mirror's start, processor", "s", [at_start]),
        Row("the mirror, of 1000 logged steps, processor", "s", [1000 * used / logged]),
    ]


def _calibrated(milliseconds: float) -> Callable[[], dict[str, float]]:
    """Return work of about `milliseconds` for one thread of an otherwise idle machine."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.rand(128, 128)

    def work(count: int) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(matrix, matrix)
        return {"ms": 1000 * (time.perf_counter() - start)}

    count = max(1, round(50 * milliseconds / min(work(50)["ms"] for _ in range(100))))
    return lambda: work(count)


def bulk(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure sending a long run that the store does not know."""
    from densevit.tracking.store import open_store

    open_store("http://nowhere")  # imports MLflow, as a working mirror has done
    rows, count = [], 0
    with closing(_stores(folder, options)) as stores:
        for kind, database in stores:
            stored = 0
            for steps in filter(None, (options.steps, options.steps // 20)):
                values = []
                for _ in range(options.rounds):
                    outputs, count = folder / f"outputs{count}", count + 1
                    run_id = _make_run(outputs, steps, METRICS, count)
                    stored = steps * METRICS + (stored if database else 0)
                    if not database:
                        client = open_store(f"sqlite:///{outputs / 'mlflow.db'}")
                        client.search_experiments(max_results=1)  # creates the tables
                    values.append(_sent(outputs, [run_id], None, database, stored))
                rows.append(Row(f"{steps * METRICS:,} values into {kind}", "s", values, goal=10))
    return rows


def sync(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Measure the sync of a sweep of which nothing is missing."""
    from rundirs import make_plan

    runs = [_make_run(folder, 40, 50, seed) for seed in range(options.runs)]
    for run_id in runs:
        file = folder / "runs" / run_id / "predictions" / "val.parquet"
        file.parent.mkdir()
        file.write_bytes(random.randbytes(100_000))
    make_plan(folder, "scale", runs)
    command = [sys.executable, "-m", "densevit", "sync", "scale", "--outputs", str(folder)]
    rows = []
    with closing(_stores(folder, options)) as stores:
        for kind, database in stores:
            _sent(folder, runs, "scale", database, options.runs * 40 * 50)
            values = []
            for _ in range(options.rounds + 1):
                start = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                values.append(time.perf_counter() - start)
                if done.returncode or done.stdout != f"scale: up to date ({options.runs} runs)\n":
                    raise RunError(f"sync: {done.stdout}{done.stderr}")
            rows.append(Row(f"sync of {options.runs} runs, up to date, {kind}", "s", values[1:], 1))
    return rows


def _make_run(outputs: Path, steps: int, metrics: int, seed: int) -> str:
    """Create a finished run of `steps` steps of `metrics` metrics; return its id."""
    from rundirs import START, make_run

    lines = [{"step": n, "epoch": n, "time": START + n} for n in range(1, steps + 1)]
    lines = [line | _numbers("m/", metrics) for line in lines]
    return make_run(outputs, lines, seed=seed)


def _stores(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield each store's name and the URI of its database, "" for that of an outputs folder."""
    import servers

    yield "SQLite", ""
    if options.no_server:
        return
    with ExitStack() as stack:
        kind, database = "SQLite", f"sqlite:///{folder / 'server.db'}"
        if servers._programs() is not None and find_spec("psycopg2") is not None:
            kind, database = "PostgreSQL", stack.enter_context(servers.postgres(folder / "pg"))
        server = stack.enter_context(servers.mlflow_server(database, folder / "served" / "files"))
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        stack.callback(os.environ.pop, "MLFLOW_TRACKING_URI")
        yield f"a server on {kind}", database


def _sent(outputs: Path, runs: list[str], sweep: str | None, database: str, expected: int) -> float:
    """Return the seconds until the store is up to date, which must then have `expected` values."""
    from densevit.tracking.mirror_process import mirror_once

    start = time.perf_counter()
    problems, _ = mirror_once(outputs, runs, sweep)
    seconds = time.perf_counter() - start
    _require(database or f"sqlite:///{outputs / 'mlflow.db'}", expected, problems)
    return seconds


def _require(database: str, expected: int, problems: Sequence[str] = ()) -> None:
    """Check that the store holds each value exactly once."""
    from servers import points

    stored = points(database)
    if problems or (stored["metrics"], stored["distinct"]) != (expected, expected):
        raise RunError(f"{expected} values were sent; the store has {stored}; {problems}")


MEASUREMENTS = {measurement.__name__: measurement for measurement in (hot, step, bulk, sync)}


if __name__ == "__main__":
    sys.exit(main())
