"""Shared parts of the benches: tables and records of measurements, separate processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from densevit.utils.errors import UserError, nearest


class Row(NamedTuple):
    """A measured quantity, one value per round, and its goal: at most, or `least` for at least."""

    name: str
    unit: str
    values: list[float]
    goal: float | None = None
    least: bool = False

    @property
    def ratio(self) -> float | None:
        return None if self.goal is None else statistics.median(self.values) / self.goal


def table(rows: Sequence[Row]) -> str:
    """Return the medians in Markdown, with quartiles, goals and ratios to the goals."""
    lines = []
    for row in rows:
        text = f"{statistics.median(row.values):.4g} {row.unit}".rstrip()
        low, _, high = quartiles(row.values)
        cells = [row.name, text, f"{low:.4g}–{high:.4g}" if len(row.values) > 1 else "", "", ""]
        if row.goal is not None:
            cells[3] = f"{'≥' if row.least else '≤'} {row.goal:g} {row.unit}".rstrip()
            cells[4] = f"{row.ratio:.3f}"
        lines.append(cells)
    return markdown(["", "median", "quartiles", "goal", "median / goal"], lines)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    rule = "|---|" + "--:|" * (len(head) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    return "\n".join([lines[0], rule, *lines[1:]])


def quartiles(values: Sequence[float]) -> list[float]:
    """Return the first quartile, the median and the third quartile."""
    if len(values) == 1:
        return [*values] * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def selected(text: str, known: Collection[str]) -> list[str]:
    """Return the names in `--only`. Errors: `UserError` for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--only: unknown name {name!r}; {nearest(name, known)}")
    return names


def write_record(
    file: Path, script: str, arguments: Sequence[str], device: str = "cpu", **numbers: Any
) -> None:
    """Write `--json`: the command, the machine and the numbers."""
    command = shlex.join(["python", f"bench/{script}", *arguments])
    record = {"command": command, "machine": machine(device), **numbers}
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def machine(device: str) -> dict[str, Any]:
    """Return the hardware and versions of the measurement."""
    import torch  # after measuring: a large process starts others more slowly

    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def seconds_of(function: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return the result of a function, called in a fresh process."""
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit memory
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()
