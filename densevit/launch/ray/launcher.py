"""The Ray launcher, without importing Ray: `driver` does when runs are launched."""

from __future__ import annotations

from densevit.launch.foreground import Watch
from densevit.launch.launcher import Launcher, LaunchOptions
from densevit.launch.ray.cluster import address, connected
from densevit.sweep.grid import Run
from densevit.sweep.plan import Plan


def _launch(plan: Plan, runs: tuple[Run, ...], options: LaunchOptions, watch: Watch) -> list[str]:
    from densevit.launch.ray.driver import launch

    launch(plan, runs, watch)
    return []


RAY = Launcher(
    "ray", _launch, foreground=True, connected=connected, ends_early=True,
    here=lambda plan: address(plan) == "local",
)  # fmt: skip
