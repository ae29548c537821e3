"""A parser with one-line errors, flags that several commands have, and exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from densevit.config.error_messages import hint_for
from densevit.runs.directory import RunFolder, run_folder
from densevit.utils.errors import EXIT_MISTAKE, UserError, exit_code, nearest
from densevit.utils.escape import visible
from densevit.utils.streams import outliving_readers

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # what `add_subparsers` returns


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and point to the nearest flag."""

    def __init__(self, program: str | None = None, **options: Any) -> None:
        options.setdefault("prog", program)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, visible(f"{self.prog}: {message}\n"))

    def parse_args(  # type: ignore[override]  # of its overloads, the one that is used
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        given = sys.argv[1:] if args is None else args
        found, unknown = self.parse_known_args(given, namespace)
        if unknown:
            self.error(_unknown(given, unknown[0], self._used(found)))
        return found

    def _used(self, found: argparse.Namespace) -> list[Parser]:
        """Return this parser and those of the commands that were given."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return [self, *action.choices[getattr(found, action.dest)]._used(found)]
        return [self]


def _unknown(given: Sequence[str], word: str, used: Sequence[Parser]) -> str:
    """Return the message on a word that the command does not know."""
    if not word.startswith("-"):
        before = given[: given.index(word)] if word in given else ()
        if any(other.startswith("-") for other in before):  # argparse takes names in one row only
            return f"{word}: unknown; put all names before the options"
        return f"{word}: unknown; {used[-1].prog} takes no more names; see --help"
    flag, command = word.partition("=")[0], used[-1]
    others = [
        parser.prog
        for action in used[0]._actions
        if isinstance(action, argparse._SubParsersAction)
        for parser in action.choices.values()
        if flag in parser._option_string_actions
    ]
    if others:
        return f"{flag}: is an option of {' and '.join(others)}, and not of {command.prog}"
    return f"{flag}: unknown; {hint_for(flag, command._option_string_actions)}"


def add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--outputs", metavar="DIR", help="default: $DENSEVIT_OUTPUTS, else ./outputs"
    )


def add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="a field for every cell (epochs=2), seeds, or a resource (resources.mem=64G)",
    )  # fmt: skip


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="the MLflow store (default: $MLFLOW_TRACKING_URI, else mlflow.db in the outputs)",
    )  # fmt: skip


def set_tracking_uri(given: str | None) -> None:
    """Use the store of a flag in this process and in those that it starts."""
    if given is None:
        return
    if not given.strip():
        raise UserError("--tracking-uri: wanted the URI of an MLflow store, found none")
    os.environ["MLFLOW_TRACKING_URI"] = given


def find_run(given: str, outputs: Path) -> RunFolder | None:
    """Return the run of an id or a directory, None if there is none."""
    path = Path(given)
    if (path / "config.yaml").is_file():
        return RunFolder(path.absolute())
    folder = run_folder(outputs, given)
    return folder if "/" not in given and folder.config_file.is_file() else None


def existing_run(given: str, outputs: Path) -> RunFolder:
    """Return the run of an id or a directory. Errors: `UserError` with the nearest id."""
    folder = find_run(given, outputs)
    if folder is None:
        ids = [p.name for p in (outputs / "runs").glob("*") if p.is_dir()]
        raise UserError(f"{given}: no such run in {outputs / 'runs'}; {nearest(given, ids)}")
    return folder


def profile_path(text: str) -> str:
    """Return a profile as typed: a path is relative to the current folder, a name is none."""
    is_path = "/" in text or text.endswith((".yaml", ".yml"))
    return str(Path(text).expanduser().absolute()) if is_path else text


def sweep_name(given: str) -> str:
    """Return the name of a sweep, given its name or its YAML file."""
    path = Path(given)
    if "/" not in given and path.suffix not in (".yaml", ".yml"):
        return given
    if not path.is_file():
        raise UserError(f"{given}: no such file (give a sweep's name or its YAML file)")
    from densevit.sweep.read_spec import read_spec

    return read_spec(path).name


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def points(text: str) -> float:
    """Parse a difference in percentage points."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of points above 0, below 100")
    return value


def run_command(program: str, parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Parse, call what the command set as `call`, and turn its errors into one line and a code.

    A command that set `starts_runs` goes on if its output is not read any more.
    """

    def work() -> int:
        options = parser.parse_args(arguments)
        starts_runs = getattr(options, "starts_runs", False)
        with outliving_readers() if starts_runs else nullcontext():
            return int(options.call(options))

    return exit_code(program, work)
