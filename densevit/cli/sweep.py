"""The command `densevit-sweep`: parse, call, print.

Each command imports the heavy modules that it needs; `--help`, `plan`, `status`, `logs`, `explain`
and `cancel` need none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densevit import __version__
from densevit.cli.parser import (
    Parser,
    add_tracking_uri,
    positive,
    run_command,
    set_tracking_uri,
)
from densevit.cli.sweep_flags import (
    _add_budget,
    _add_jobs,
    _add_launching,
    _add_report,
    _add_watch,
    _add_where,
    _command,
)
from densevit.config.metrics import SMALLEST_EFFECT
from densevit.launch.check_images import check_measured
from densevit.launch.launchers import choose_launcher, observe, read_plan
from densevit.monitor import plan_table, status_record
from densevit.runs.directory import outputs_root
from densevit.runs.status import CAUSES
from densevit.sweep.earlier_plans import check_owner, dropped_line
from densevit.sweep.plan import Plan
from densevit.utils.cache import use_writable_cache
from densevit.utils.console import say
from densevit.utils.errors import UserError, nearest

COMMANDS = ("run", "plan", "status", "logs", "retry", "cancel", "explain", "report")


def main_sweep(arguments: Sequence[str] | None = None, program: str = "densevit-sweep") -> int:
    """Run the command `densevit-sweep` and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `densevit-sweep FILE` is short for `densevit-sweep run FILE`.
    if given and given[0] not in (*COMMANDS, "-h", "--help", "--version"):
        _check_file(program, given[0])
        given.insert(0, "run")
    return run_command(program, sweep_parser(program), given)


def _check_file(program: str, first: str) -> None:
    """Exit if the first word is no file but nearly a command."""
    hint = nearest(first, COMMANDS)
    is_name = first.replace("-", "").isalpha()
    if is_name and hint.startswith("did you mean") and not Path(first).exists():
        Parser(program).error(f"{first}: is neither a command nor a file; {hint}")


def sweep_parser(program: str) -> Parser:
    """Return the parser of `densevit-sweep`."""
    parser = Parser(
        program,
        usage=f"{program} [COMMAND] FILE [options]",
        description="Expand a YAML grid into runs, execute the unfinished ones, and report.",
        epilog=f"{program} FILE is short for {program} run FILE. It is safe to repeat.",
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=program)
    _add_commands(commands)
    return parser


def _add_commands(commands: Any) -> None:
    run = _command(commands, "run", _run, "execute the unfinished runs, then report")
    _add_launching(run)
    _add_budget(run)
    run.add_argument("--dry-run", action="store_true", help="only print what would be started")
    plan = _command(commands, "plan", _plan, "list the cells and runs of the sweep", nargs="?")
    plan.add_argument("--diff", nargs=2, metavar=("OLD", "NEW"), help="compare two sweep files")
    plan.add_argument("--estimate", action="store_true", help="measure speeds and print the cost")
    plan.add_argument("--again", action="store_true", help="with --estimate: measure all again")
    _add_budget(plan)
    _add_jobs(plan)
    _add_where(plan)
    status = _command(commands, "status", _status, "show the state and progress of each run")
    _add_watch(status)
    add_tracking_uri(status)
    for parser in (plan, status):
        parser.add_argument("--json", action="store_true", help="print JSON")
    logs = _command(commands, "logs", _logs, "show the logs of runs", runs="*")
    logs.add_argument("--failed", action="store_true", help="the logs of all failed runs")
    logs.add_argument("--follow", action="store_true", help="print new lines until the runs end")
    logs.add_argument("--lines", type=positive, default=30, metavar="N", help="of each log (30)")
    retry = _command(commands, "retry", _retry, "start failed runs again", runs="*")
    retry.add_argument("--failed", action="store_true", help="all failed or lost runs")
    retry.add_argument(
        "--class", dest="causes", action="append", choices=CAUSES,
        help="only runs that failed for this reason",
    )  # fmt: skip
    _add_launching(retry)
    cancel = _command(commands, "cancel", _cancel, "stop runs that are queued or running", runs="*")
    cancel.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    _command(commands, "explain", _explain, "explain the state of a run", runs="RUN")
    _add_report(_command(commands, "report", _report, "write the report and print its table"))


def _run(options: argparse.Namespace) -> int:
    from densevit.cli.sweep_run import run_sweep

    set_tracking_uri(options.tracking_uri)
    return run_sweep(_own_plan(options), options)


def _plan(options: argparse.Namespace) -> int:
    from densevit.sweep.plan_record import plan_record

    if options.diff:
        return _diff(options)
    if options.file is None:
        raise UserError("plan: give a sweep FILE, or two with --diff")
    if options.budget and not options.estimate:
        raise UserError("--budget: needs the cost of the runs; add --estimate")
    plan = _own_plan(options)
    if options.estimate:
        return _estimate(plan, options)
    if options.json:
        say(json.dumps(plan_record(plan, plan.statuses())))
    else:
        plan_table.print_plan(plan)
        for line in (*plan.damage(), dropped_line(plan)):
            if line:
                say(line)
    return 0


def _estimate(plan: Plan, options: argparse.Namespace) -> int:
    from densevit.cost.budget import check_budget, estimate_lines, estimate_record, parse_budget
    from densevit.cost.sweep_cost import cost
    from densevit.launch.launcher import LaunchOptions

    budget = parse_budget(options.budget) if options.budget else None
    launcher = choose_launcher(plan, options.launcher, options.profile)
    found = cost(plan, launcher, LaunchOptions(options.jobs, options.profile), again=options.again)
    say(json.dumps(estimate_record(found)) if options.json else "\n".join(estimate_lines(found)))
    if budget is not None:
        check_budget(found, budget)
    return 0


def _diff(options: argparse.Namespace) -> int:
    from densevit.sweep.plan_diff import diff, diff_lines, diff_record

    outputs = outputs_root(options.outputs)
    found = diff(*(read_plan(Path(file), outputs) for file in options.diff))
    if options.json:
        say(json.dumps(diff_record(found)))
    else:
        say("\n".join(diff_lines(found)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from densevit.monitor import status as show
    from densevit.tracking.mirror_process import fix_states

    set_tracking_uri(options.tracking_uri)
    plan = _read_plan(options)
    if options.watch:
        fix_states(plan.outputs, [run.id for run in plan.runs], plan.name)
        show.watch_status(plan, options.every, as_json=options.json)
        return 0
    observed = observe(plan)
    if options.json:
        say(json.dumps(status_record.status_record(plan, observed)))
    else:
        show.print_status(plan, observed)
    fix_states(plan.outputs, [run.id for run in plan.runs], plan.name)
    return 0


def _logs(options: argparse.Namespace) -> int:
    from densevit.monitor.logs import print_logs

    if not options.runs and not options.failed:
        raise UserError("logs: give the ids of runs, or --failed")
    print_logs(_read_plan(options), options.runs, options.failed, options.follow, options.lines)
    return 0


def _retry(options: argparse.Namespace) -> int:
    from densevit.cli.sweep_retry import retry_sweep

    set_tracking_uri(options.tracking_uri)
    if not (options.runs or options.failed or options.causes):
        raise UserError("retry: give the ids of runs, --failed, or --class")
    return retry_sweep(_own_plan(options), options)


def _cancel(options: argparse.Namespace) -> int:
    from densevit.launch.cancel import cancel_sweep

    return cancel_sweep(_read_plan(options), options.runs, options.yes)


def _explain(options: argparse.Namespace) -> int:
    from densevit.monitor.explain import explain

    say("\n".join(explain(_read_plan(options), options.run)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from densevit.cli import sweep_report

    sweep_report.refuse_unused(options)
    plan = _own_plan(options)
    check_measured(plan)
    references = None if options.references is None else Path(options.references)
    view = sweep_report.View(options.rows, options.cols, options.metric)
    difference = SMALLEST_EFFECT if options.difference is None else options.difference
    if options.freeze is not None:
        sweep_report.freeze_sweep(plan, options.freeze)
    own_view = view if view != sweep_report.View() else None
    if options.format == "html":
        sweep_report.print_page(plan, references, difference, own_view)
    elif options.format or options.tracking_uri is not None:
        sweep_report.print_table(plan, view, options.format, options.tracking_uri)
    else:
        sweep_report.report_sweep(plan, references, difference, own_view, paper=options.paper)
    return 0


def _read_plan(options: argparse.Namespace) -> Plan:
    return read_plan(Path(options.file), outputs_root(options.outputs), options.changes)


def _own_plan(options: argparse.Namespace) -> Plan:
    """Return the plan for a command that writes into the sweep's folder, which it must own."""
    plan = _read_plan(options)
    check_owner(plan)
    use_writable_cache(plan.outputs)
    return plan
