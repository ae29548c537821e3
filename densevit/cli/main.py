"""The command `densevit`: parse, call, print.

Each command imports the heavy modules that it needs; `--help` needs none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from densevit import __version__
from densevit.cli.compare import add_compare
from densevit.cli.completion import add_completion
from densevit.cli.data import add_data
from densevit.cli.evaluate import add_eval
from densevit.cli.export import add_export
from densevit.cli.parser import Parser, run_command
from densevit.cli.show import add_show
from densevit.cli.sweep import main_sweep, sweep_parser
from densevit.cli.sync import add_sync
from densevit.cli.train import add_train
from densevit.cli.ui import add_ui

__all__ = ["main", "main_sweep"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `densevit` and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sweep"]:
        return main_sweep(given[1:], program="densevit sweep")
    return run_command("densevit", _parser(), given)


def _parser() -> Parser:
    """Return the parser of `densevit`."""
    parser = Parser("densevit", description="Train and compare Vision Transformers with dense, "
                     "global or no contrastive learning.")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"densevit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_train(commands)
    add_data(commands)
    add_eval(commands)
    add_show(commands)
    add_compare(commands)
    add_export(commands)
    add_sync(commands)
    add_ui(commands)
    commands.add_parser("sweep", help="run a grid of configurations (the same as densevit-sweep)")
    add_completion(commands, lambda: [parser, sweep_parser("densevit-sweep")])
    return parser
