"""`densevit completion`: print a shell's completion of both commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from densevit.cli.parser import Commands, Parser
from densevit.utils.errors import UserError

SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES, FOLDERS = ("FILE", "CSV", "IMAGE", "ARCHIVE"), ("DIR",)


def add_completion(commands: Commands, programs: Callable[[], list[Parser]]) -> None:
    """Add the command; `programs` returns the parsers of the commands to complete."""
    completion = commands.add_parser(
        "completion",
        help="print a shell's completion of densevit and densevit-sweep",
        description='Print a shell\'s completion: eval "$(densevit completion bash)" in ~/.bashrc.',
    )
    completion.set_defaults(call=lambda options: _completion(options.shell, programs()))
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def _completion(shell: str, programs: list[Parser]) -> int:
    try:
        import shtab
    except ImportError:
        raise UserError(
            "completion: shtab is not installed; pip install 'densevit[completion]'"
        ) from None
    for parser in programs:
        for action in _actions(parser):
            if action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own protocol
            elif action.metavar in FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        sys.stdout.write(shtab.complete(parser, shell) + "\n")
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a command and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
