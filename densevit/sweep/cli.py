"""The command `densevit-sweep`: parse, call, print.

Heavy modules are imported by the command that needs them; `--help`, `plan`, `status`, `logs`,
`explain` and `cancel` need none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from densevit.commandline import (
    Parser,
    add_outputs,
    add_tracking_uri,
    heed_tracking_uri,
    points,
    positive,
    run_command,
)
from densevit.errors import UserError
from densevit.rundir import CAUSES, outputs_root

COMMANDS = ("run", "plan", "status", "logs", "retry", "cancel", "explain", "report")
WATCH_SECONDS = 20


def main_sweep(arguments: Sequence[str] | None = None, program: str = "densevit-sweep") -> int:
    """The command `densevit-sweep`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `densevit-sweep FILE` is the main job and needs no word for it.
    if given and given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "run")
    parser = Parser(
        program,
        usage=f"{program} [COMMAND] FILE [options]",
        description="Turn a YAML grid into runs, execute what is not finished yet, and report.",
        epilog=f"{program} FILE is the same as {program} run FILE, and safe to repeat.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=program)
    _add_commands(commands)
    return run_command(program, parser, given)


def _add_commands(commands: Any) -> None:
    run = _command(commands, "run", _run, "run what is not finished, then report")
    _add_launching(run)
    _add_budget(run)
    run.add_argument("--dry-run", action="store_true", help="say what would be started, only")
    plan = _command(
        commands, "plan", _plan, "list the cells and runs of the sweep; trains nothing", nargs="?"
    )
    plan.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), help="compare two sweep files")
    plan.add_argument("--estimate", action="store_true", help="measure, and say what it will cost")
    plan.add_argument("--again", action="store_true", help="with --estimate: measure all anew")
    _add_budget(plan)
    _add_jobs(plan)
    _add_where(plan)
    status = _command(commands, "status", _status, "say how far each run is")
    _add_watch(status)
    add_tracking_uri(status)
    for parser in (plan, status):
        parser.add_argument("--json", action="store_true", help="for programs")
    logs = _command(commands, "logs", _logs, "show the logs of runs", runs="*")
    logs.add_argument("--failed", action="store_true", help="of all runs that failed")
    logs.add_argument("--follow", action="store_true", help="go on until the runs end")
    logs.add_argument("--lines", type=positive, default=30, metavar="N", help="of each log (30)")
    retry = _command(commands, "retry", _retry, "start failed runs again", runs="*")
    retry.add_argument("--failed", action="store_true", help="all that failed or got lost")
    retry.add_argument(
        "--class", dest="causes", action="append", choices=CAUSES, help="those that failed of this"
    )
    retry.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE",
        help="with other resources (resources.mem=64G), or another way to execute them",
    )  # fmt: skip
    _add_launching(retry)
    cancel = _command(commands, "cancel", _cancel, "stop jobs that wait or run", runs="*")
    cancel.add_argument("--yes", action="store_true", help="without asking")
    _command(commands, "explain", _explain, "say why a run is where it is", runs="RUN")
    _add_report(
        _command(commands, "report", _report, "write the report and print the answer so far")
    )


def _add_report(report: Any) -> None:
    for flag, text in (
        ("--rows", "a table with a row for each value of these, instead of the cells' table"),
        ("--cols", "and a column for each value of these"),
    ):
        report.add_argument(flag, type=_names, default=(), metavar="AXIS[,AXIS]", help=text)
    report.add_argument("--metric", help="what the table shows (top1)")
    report.add_argument(
        "--format", choices=["md", "csv", "tex", "html"],
        help="print that table alone; html: write the page with it, and print where it is",
    )  # fmt: skip
    report.add_argument("--freeze", metavar="NAME", help="keep these numbers, to see what moves")
    report.add_argument(
        "--tracking-uri", metavar="URI",
        help="print that table alone, of the runs in an MLflow store instead of their directories",
    )  # fmt: skip
    report.add_argument(
        "--references", metavar="CSV",
        help="models of your own for the lines of effective robustness (docs/benchmarks.md)",
    )  # fmt: skip
    report.add_argument(
        "--difference", type=points, metavar="POINTS",
        help="the smallest difference that matters to you (1.0)",
    )  # fmt: skip


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("wanted names of axes, found none")
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
        parser.add_argument("runs", metavar="RUN", nargs="*", help="ids, or their beginnings")
    elif runs is not None:
        parser.add_argument("run", metavar=runs, help="an id, or its beginning")
    add_outputs(parser)
    return parser


def _add_launching(parser: Any) -> None:
    _add_jobs(parser)
    parser.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    add_tracking_uri(parser)
    _add_where(parser)
    for flag, text in (
        ("--live-code", "slurm: jobs run the code as it is then, not a copy of it as it is now"),
        ("--no-canary", "slurm: start all at once, whether the first one works or not"),
    ):
        parser.add_argument(flag, action="store_true", help=text)
    _add_watch(parser)


def _add_jobs(parser: Any) -> None:
    parser.add_argument("--jobs", type=positive, default=1, metavar="K", help="local: runs at once")


def _add_budget(parser: Any) -> None:
    parser.add_argument(
        "--budget", metavar="200gpuh", help="refuse what would cost more than so many GPU-hours"
    )


def _add_where(parser: Any) -> None:
    parser.add_argument(
        "--launcher", choices=["local", "slurm", "ray"], help="instead of the file's"
    )
    parser.add_argument("--profile", metavar="NAME", help="slurm: instead of the file's")


def _add_watch(parser: Any) -> None:
    parser.add_argument(
        "--watch", action="store_true", help="stay until nothing runs or waits any more (slurm)"
    )
    parser.add_argument(
        "--every", type=positive, default=WATCH_SECONDS, metavar="SECONDS",
        help=f"with --watch: between two looks ({WATCH_SECONDS})",
    )  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    from densevit.sweep.command import run_sweep

    heed_tracking_uri(options.tracking_uri)
    return run_sweep(_made(options), options)


def _plan(options: argparse.Namespace) -> int:
    from densevit.sweep import show
    from densevit.sweep.record import plan_record

    if options.diff:
        return _diff(options)
    if options.file is None:
        raise UserError("plan: which sweep? give a FILE, or two with --diff")
    if options.budget and not options.estimate:
        raise UserError("--budget: what runs cost is told by --estimate; give both")
    if not options.json and not options.estimate and show.print_count(Path(options.file)):
        return 0
    plan = _made(options)
    if options.estimate:
        return _estimate(plan, options)
    if options.json:
        print(json.dumps(plan_record(plan, plan.statuses())))
    else:
        show.print_plan(plan)
    return 0


def _estimate(plan: Any, options: argparse.Namespace) -> int:
    from densevit.sweep import costing

    if options.budget:
        costing.parse_budget(options.budget)  # before anything is measured
    launcher = options.launcher or plan.spec.launcher
    found = costing.cost(plan, launcher, options.profile, options.jobs, again=options.again)
    costing.print_estimate(found, as_json=options.json)
    if options.budget:
        costing.keep_to(options.budget, found)
    return 0


def _diff(options: argparse.Namespace) -> int:
    from densevit.sweep.diff import diff, diff_lines, diff_record
    from densevit.sweep.plan import make_plan

    outputs = outputs_root(options.outputs)
    found = diff(*(make_plan(Path(file), outputs) for file in options.diff))
    if options.json:
        print(json.dumps(diff_record(found)))
    else:
        print("\n".join(diff_lines(found)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from densevit.sweep import show
    from densevit.sweep.state import observe
    from densevit.tracking.beside import set_right

    heed_tracking_uri(options.tracking_uri)
    plan = _made(options)
    if options.watch:
        set_right(plan.outputs, [run.id for run in plan.runs], plan.name)
        show.watch_status(plan, options.every, as_json=options.json)
        return 0
    observed = observe(plan)
    if options.json:
        print(json.dumps(show.status_record(plan, observed)))
    else:
        show.print_status(plan, observed)
    set_right(plan.outputs, [run.id for run in plan.runs], plan.name)
    return 0


def _logs(options: argparse.Namespace) -> int:
    from densevit.sweep.logs import print_logs

    if not options.runs and not options.failed:
        raise UserError("logs: which runs? give their ids, or --failed")
    print_logs(_made(options), options.runs, options.failed, options.follow, options.lines)
    return 0


def _retry(options: argparse.Namespace) -> int:
    from densevit.sweep.command import retry_sweep

    heed_tracking_uri(options.tracking_uri)
    if not (options.runs or options.failed or options.causes):
        raise UserError("retry: which runs? give their ids, --failed, or --class")
    return retry_sweep(_made(options), options)


def _cancel(options: argparse.Namespace) -> int:
    from densevit.sweep.cancel import cancel_sweep

    return cancel_sweep(_made(options), options.runs, options.yes)


def _explain(options: argparse.Namespace) -> int:
    from densevit.sweep.explain import explain

    print("\n".join(explain(_made(options), options.run)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from densevit.sweep import outcome

    _refuse_unused(options)
    plan = _made(options)
    references = None if options.references is None else Path(options.references)
    metric = "top1" if options.metric is None else options.metric
    view = outcome.View(options.rows, options.cols, metric)
    wanted = outcome.WANTED if options.difference is None else options.difference
    if options.freeze is not None:
        outcome.freeze_sweep(plan, options.freeze)
    asked = view if view != outcome.View() else None
    if options.format == "html":
        outcome.print_page(plan, references, wanted, asked)
    elif options.format or options.tracking_uri is not None:
        outcome.print_table(plan, view, options.format, options.tracking_uri)
    else:
        outcome.report_sweep(plan, references, wanted, asked)
    return 0


def _refuse_unused(options: argparse.Namespace) -> None:
    """What a table alone, or the page alone, would not heed."""
    to = f"--format {options.format}" if options.format else "--tracking-uri"
    if options.format == "html":
        unused, why = ("tracking_uri",), "a store has not all that is in a page"
    elif options.format or options.tracking_uri is not None:
        unused, why = ("references", "difference"), "it prints the table alone"
    else:
        return
    unused += ("freeze",) if options.tracking_uri is not None else ()
    for name in unused:
        if getattr(options, name) not in (None, ()):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: means nothing to {to}: {why}")


def _made(options: argparse.Namespace) -> Any:
    from densevit.sweep.plan import make_plan

    return make_plan(Path(options.file), outputs_root(options.outputs))
