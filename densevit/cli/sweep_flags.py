"""Flags that several `densevit-sweep` commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from densevit.cli.parser import (
    add_changes,
    add_outputs,
    add_tracking_uri,
    points,
    positive,
    profile_path,
)
from densevit.launch import launchers

WATCH_SECONDS = 20


def _add_report(report: Any) -> None:
    for flag, text in (
        ("--rows", "print a table with a row for each value of these axes"),
        ("--cols", "with a column for each value of these axes"),
    ):
        report.add_argument(flag, type=_names, default=(), metavar="AXIS[,AXIS]", help=text)
    report.add_argument(
        "--metric", help="the metric of the table (default: top1 or, of several classes, map)"
    )
    report.add_argument(
        "--format", choices=["md", "csv", "tex", "html"],
        help="print the table alone in this format; html: write the page and print its path",
    )  # fmt: skip
    report.add_argument(
        "--paper", action="store_true",
        help="also write a folder for a paper: tables and methods as LaTeX, figures, sources",
    )  # fmt: skip
    report.add_argument("--freeze", metavar="NAME", help="keep the numbers, to see changes later")
    report.add_argument(
        "--tracking-uri", metavar="URI",
        help="print the table alone, of the runs in an MLflow store",
    )  # fmt: skip
    report.add_argument(
        "--references", metavar="CSV",
        help="your own reference models for effective robustness (docs/benchmarks.md)",
    )  # fmt: skip
    report.add_argument(
        "--difference", type=points, metavar="POINTS",
        help="the smallest difference that matters, in percentage points (1.0)",
    )  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("needs the names of axes")
    return names


def _command(
    commands: Any,
    name: str,
    call: Callable[[argparse.Namespace], int],
    text: str,
    nargs: str | None = None,
    runs: str | None = None,
) -> Any:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(call=call)
    parser.add_argument("file", metavar="FILE", nargs=nargs, help="the sweep, a YAML file")
    if runs == "*":
        parser.add_argument(
            "runs", metavar="RUN", nargs="*", help="ids of runs or cells, or how they begin"
        )
    elif runs is not None:
        parser.add_argument("run", metavar=runs, help="the id of a run, or how it begins")
    add_changes(parser)
    add_outputs(parser)
    return parser


def _add_launching(parser: Any) -> None:
    parser.set_defaults(starts_runs=True)
    _add_jobs(parser)
    parser.add_argument("--no-tracking", action="store_true", help="do not send runs to MLflow")
    add_tracking_uri(parser)
    _add_where(parser)
    for flag, text in (
        ("--live-code", "slurm: jobs run the code as it is when they start, not a copy made now"),
        ("--no-canary", "slurm: start all jobs without waiting for the first steps of the first"),
        ("--replace", "slurm: submit waiting jobs anew if their resources have changed"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    _add_watch(parser)


def _add_jobs(parser: Any) -> None:
    parser.add_argument("--jobs", type=positive, default=1, metavar="K", help="local: runs at once")


def _add_budget(parser: Any) -> None:
    parser.add_argument(
        "--budget", metavar="200gpuh", help="refuse to start runs that would cost more GPU-hours"
    )


def _add_where(parser: Any) -> None:
    names = [launcher.name for launcher in launchers.LAUNCHERS]
    parser.add_argument("--launcher", choices=names, help="override the file's launcher")
    parser.add_argument(
        "--profile", type=profile_path, metavar="NAME", help="slurm: override the file's profile"
    )


def _add_watch(parser: Any) -> None:
    parser.add_argument(
        "--watch", action="store_true", help="follow jobs until none is running or queued"
    )
    parser.add_argument(
        "--every", type=positive, default=WATCH_SECONDS, metavar="SECONDS",
        help=f"with --watch: seconds between two updates ({WATCH_SECONDS})",
    )  # fmt: skip
