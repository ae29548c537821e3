"""What the commands share: parsing with one-line errors, and errors as exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from densevit.errors import (
    EXIT_CARRY_ON,
    EXIT_FAILED,
    EXIT_MISTAKE,
    RunError,
    Stopped,
    Unreachable,
    UserError,
    nearest,
)
from densevit.rundir import RunFolder, run_folder


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and point to the nearest flag."""

    def __init__(self, program: str | None = None, **options: Any) -> None:
        options.setdefault("prog", program)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split()[0]
            hint = nearest(wrong, self._all_flags())
            if not wrong.startswith("-"):  # argparse takes names in one row only
                hint = "names stand together, before the options"
            message = f"{wrong}: unknown; {hint}"
        self.exit(EXIT_MISTAKE, f"{self.prog}: {message}\n")

    def _all_flags(self) -> list[str]:
        """Its flags and those of the commands below it."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    flags += Parser._all_flags(parser)
        return list(dict.fromkeys(flags))


def add_outputs(parser: Any) -> None:
    parser.add_argument(
        "--outputs", metavar="DIR", help="default: $DENSEVIT_OUTPUTS, else ./outputs"
    )


def add_tracking_uri(parser: Any) -> None:
    parser.add_argument(
        "--tracking-uri", metavar="URI",
        help="the MLflow store (default: $MLFLOW_TRACKING_URI, else mlflow.db in the outputs)",
    )  # fmt: skip


def heed_tracking_uri(given: str | None) -> None:
    """Let this process, and what it starts, take the store of a flag."""
    if given is None:
        return
    if not given.strip():
        raise UserError("--tracking-uri: wanted the URI of an MLflow store, found none")
    os.environ["MLFLOW_TRACKING_URI"] = given


def find_run(given: str, outputs: Path) -> RunFolder | None:
    """The run of an id or a directory; None where there is none."""
    path = Path(given)
    if (path / "config.yaml").is_file():
        return RunFolder(path.absolute())
    folder = run_folder(outputs, given)
    return folder if "/" not in given and folder.config_file.is_file() else None


def existing_run(given: str, outputs: Path) -> RunFolder:
    """The run of an id or a directory. Errors: `UserError` with the nearest id."""
    folder = find_run(given, outputs)
    if folder is None:
        ids = [p.name for p in (outputs / "runs").glob("*") if p.is_dir()]
        raise UserError(f"{given}: no such run in {outputs / 'runs'}; {nearest(given, ids)}")
    return folder


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def points(text: str) -> float:
    """A difference in points of a percentage."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of points above 0, below 100")
    return value


def run_command(program: str, parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Parse, call what the command set as `call`, and turn its errors into one line and a code."""
    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except UserError as error:
        # From a loading process the message arrives behind that process's traceback.
        told = str(error).strip().rpartition("densevit.errors.UserError: ")[2]
        print(f"{program}: {told}", file=sys.stderr)
        return EXIT_MISTAKE
    except RunError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except Unreachable as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_CARRY_ON
    except (Stopped, KeyboardInterrupt):
        print(f"{program}: stopped; the same command carries on", file=sys.stderr)
        return EXIT_CARRY_ON
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        return 0
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return EXIT_MISTAKE
