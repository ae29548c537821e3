"""Text for the user: commands ready to type, resources."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from densevit.runs.directory import outputs_root
from densevit.sweep.plan import Plan


def typed(plan: Plan, command: str, *words: str) -> str:
    """Return a `densevit-sweep` command about the plan, ready to paste into a shell."""
    command_line = ["densevit-sweep", *([command] if command else []), str(plan.spec.file), *words]
    for change in plan.spec.changes:
        command_line += ["--set", change]
    if plan.outputs != outputs_root(None):
        command_line += ["--outputs", str(plan.outputs)]
    return shlex.join(command_line)


def resources_text(resources: Mapping[str, Any]) -> str:
    """Return resources as `gpus 1, hours 2`."""
    return ", ".join(f"{k} {v}" for k, v in resources.items()) or "no resources named"
