"""`densevit export`: write a run's network to a file that loads without DenseViT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densevit.cli.parser import add_outputs, existing_run
from densevit.runs.directory import outputs_root
from densevit.utils.console import say


def add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a run's network to a file that timm loads",
        description="Write the backbone and classifier of a run to a safetensors file.",
    )
    export.set_defaults(call=_export)
    export.add_argument("run", metavar="RUN", help="the id of a run, or its directory")
    export.add_argument("--format", choices=["timm"], default="timm", help="(default: timm)")
    export.add_argument("--to", metavar="FILE", help="default: RUN.safetensors in this folder")
    add_outputs(export)


def _export(options: argparse.Namespace) -> int:
    folder = existing_run(options.run, outputs_root(options.outputs))
    from densevit.models.export import export_timm

    target = Path(options.to or f"{folder.path.name}.safetensors").absolute()
    say(f"{target}\n{export_timm(folder, target)}")
    return 0
