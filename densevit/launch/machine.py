"""Places where the speed of runs is measured, and the hardware of this one."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from densevit.utils.console import count
from densevit.utils.threads import limit_processors, processors

MEASURE = "densevit.cost.measure"  # the module, which stands above this one, of a probe's process


@dataclass(frozen=True)
class Place:
    """A place where probes run, by `name`; `run` runs `MEASURE` there on two files, IN and OUT, and
    returns its exit code."""

    name: str
    run: Callable[[Path, Path], int]


def this_machine(jobs: int = 1) -> Place:
    """Return a place that runs probes here, with the CPU cores of one of `jobs` concurrent local
    runs. Contention for memory, disk or a GPU is not measured."""
    environment = dict(os.environ)
    limit_processors(environment, share := max(1, processors() // jobs))
    parts = [*_gpu_names(), processor_name(), count(share, "processor")]

    def run(source: Path, target: Path) -> int:
        command = [sys.executable, "-m", MEASURE, str(source), str(target)]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603

    return Place(", ".join([*parts, f"torch {metadata.version('torch')}"]), run)


def _gpu_names() -> list[str]:
    """Return the models of the NVIDIA GPUs here; none if `CUDA_VISIBLE_DEVICES` is empty."""
    folder = Path("/proc/driver/nvidia/gpus")
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not folder.is_dir():
        return []
    texts = [(gpu / "information").read_text() for gpu in folder.iterdir()]
    models = (re.search(r"^Model:\s*(.*)$", text, re.MULTILINE) for text in texts)
    return sorted({found[1].strip() for found in models if found})


def processor_name() -> str:
    """Return the CPU model from /proc/cpuinfo, else what `platform` reports."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
