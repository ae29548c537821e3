"""The commands `densevit` and `densevit-sweep`: parse, call, print.

Heavy modules are imported by the command that needs them; `--help`, `plan` and `status` need none.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from densevit import __version__, yamlfile
from densevit.config import FIELDS, RunConfig, identity
from densevit.errors import (
    EXIT_CARRY_ON,
    EXIT_FAILED,
    EXIT_MISTAKE,
    RunError,
    Stopped,
    UserError,
    nearest,
)
from densevit.layers import Layer, absolute_paths, build, read_layers, source_of
from densevit.rundir import RunFolder, outputs_root, read_json, run_folder

SWEEP_COMMANDS = ("run", "plan", "status", "report")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `densevit`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sweep"]:
        return main_sweep(given[1:], program="densevit sweep")
    parser = _Parser("densevit", description="Train and compare Vision Transformers with dense, "
                     "global or no contrastive learning.")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"densevit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_export(commands)
    commands.add_parser("sweep", help="run a grid of configurations (the same as densevit-sweep)")
    return _run_command("densevit", parser, given)


def main_sweep(arguments: Sequence[str] | None = None, program: str = "densevit-sweep") -> int:
    """The command `densevit-sweep`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # `densevit-sweep FILE` is the main job and needs no word for it.
    if given and given[0] not in (*SWEEP_COMMANDS, "-h", "--help"):
        given.insert(0, "run")
    parser = _Parser(
        program,
        usage=f"{program} [COMMAND] FILE [options]",
        description="Turn a YAML grid into runs, execute what is not finished yet, and report.",
        epilog=f"{program} FILE is the same as {program} run FILE, and safe to repeat.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_sweep_commands(commands)
    return _run_command(program, parser, given)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train and evaluate one run, or carry it on",
        description="Train and evaluate one run, or carry it on. Flags override --config.",
    )
    train.set_defaults(call=_train)
    train.add_argument("--config", metavar="FILE", help="YAML with any of the fields below")
    _add_outputs(train)
    train.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    train.add_argument("--run-dir", metavar="DIR", help=argparse.SUPPRESS)
    for name, field in FIELDS.items():
        default = "" if field.default is None else f" (default: {_shown(field.get_default())})"
        flag = train.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"field_{name}",
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description}{default}".replace("%", "%%"),
        )
        if isinstance(field.default, bool):
            flag.nargs, flag.const, flag.metavar = "?", "true", "BOOL"


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write a run's network to a file that timm loads",
        description="Write the backbone and classifier of a run to a safetensors file.",
    )
    export.set_defaults(call=_export)
    export.add_argument("run", metavar="RUN", help="the id of a run, or its directory")
    export.add_argument("--format", choices=["timm"], default="timm", help="(default: timm)")
    export.add_argument("--to", metavar="FILE", help="default: RUN.safetensors in this folder")
    _add_outputs(export)


def _add_outputs(parser: Any) -> None:
    parser.add_argument(
        "--outputs", metavar="DIR", help="default: $DENSEVIT_OUTPUTS, else ./outputs"
    )


def _add_sweep_commands(commands: Any) -> None:
    def command(name: str, call: Callable[[argparse.Namespace], int], text: str) -> Any:
        parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(call=call)
        parser.add_argument("file", metavar="FILE", help="the sweep, a YAML file")
        _add_outputs(parser)
        return parser

    run = command("run", _sweep_run, "run what is not finished, then report")
    run.add_argument("--jobs", type=_positive, default=1, metavar="K", help="runs at once (1)")
    run.add_argument("--launcher", choices=["local", "slurm", "ray"], help="instead of the file's")
    run.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    plan = command("plan", _sweep_plan, "list the cells and runs of the sweep; starts nothing")
    status = command("status", _sweep_status, "say how far each run is")
    for parser in (plan, status):
        parser.add_argument("--json", action="store_true", help="for programs")
    command("report", _sweep_report, "write and print the table, with what is there so far")


def _train(options: argparse.Namespace) -> int:
    from densevit.distributed import world
    from densevit.lifecycle import execute
    from densevit.progress import showing

    if options.run_dir:
        # Started by a launcher, which keeps what is printed in the run's log.
        return execute(RunFolder(Path(options.run_dir)))
    layers = read_layers(Path(options.config)) if options.config else []
    given = {name: getattr(options, f"field_{name}") for name in FIELDS}
    flags = {name: text for name, text in given.items() if text is not None}
    settings = {name: _parsed(name, text) for name, text in flags.items()}
    layers = [*layers, Layer("command line", absolute_paths(settings, Path.cwd()))]
    config = build(layers)
    outputs = outputs_root(options.outputs)
    folder = run_folder(outputs, identity(config).run)
    _check_run(config, layers, folder)
    if not world().writes:
        return execute(folder, config)
    folder.create(config)
    print(f"run {folder.path.name} in {folder.path}", flush=True)
    with showing():
        if options.no_tracking:
            return execute(folder)
        from densevit.tracking import mirroring

        with mirroring(outputs, [folder.path.name], None):
            return execute(folder)


def _export(options: argparse.Namespace) -> int:
    given = Path(options.run)
    folder = run_folder(outputs_root(options.outputs), options.run)
    if given.is_dir():
        folder = RunFolder(given.absolute())
    if not folder.config_file.exists():
        ids = [p.name for p in folder.path.parent.glob("*") if p.is_dir()]
        raise UserError(f"{options.run}: no such run in {folder.path.parent}; "
                        f"{nearest(options.run, ids)}")  # fmt: skip
    from densevit.export import export_timm

    target = Path(options.to or f"{folder.path.name}.safetensors").absolute()
    print(f"{target}\n{export_timm(folder, target)}")
    return 0


def _check_run(config: RunConfig, layers: list[Layer], folder: RunFolder) -> None:
    """Refuse what cannot work before a folder is created or changed for it."""
    from densevit.data.sources import check_fingerprint, open_data
    from densevit.vit_names import check_names

    check_names(config, lambda key: source_of(layers, key))
    from densevit.model import check_model
    from densevit.train import check_device

    try:
        check_device(config)
        data = open_data(config, check_model(config))
        found = data.fingerprint()
        if config.init_checkpoint:
            from densevit.initial import begun_with

            found["init_checkpoint"] = begun_with(folder, config.init_checkpoint)
    except UserError as error:
        key = str(error).split(":")[0]
        raise UserError(f"{source_of(layers, key)}: {error}") from None
    held = read_json(folder.fingerprint_file)
    if held is not None:
        check_fingerprint(held, found, folder.path)


def _sweep_run(options: argparse.Namespace) -> int:
    from densevit.sweep.command import run_sweep

    plan = _plan(options)
    return run_sweep(
        plan, options.jobs, options.launcher or plan.spec.launcher, options.no_tracking
    )


def _sweep_plan(options: argparse.Namespace) -> int:
    from densevit.sweep.command import print_plan
    from densevit.sweep.plan import plan_record

    plan = _plan(options)
    if options.json:
        print(json.dumps(plan_record(plan, plan.statuses())))
    else:
        print_plan(plan)
    return 0


def _sweep_status(options: argparse.Namespace) -> int:
    from densevit.sweep.command import print_status
    from densevit.sweep.plan import count_states, plan_record

    plan = _plan(options)
    statuses = plan.statuses()
    if options.json:
        print(json.dumps({**plan_record(plan, statuses), "counts": count_states(statuses)}))
    else:
        print_status(plan, statuses)
    return 0


def _sweep_report(options: argparse.Namespace) -> int:
    from densevit.sweep.command import report_sweep

    report_sweep(_plan(options))
    return 0


def _plan(options: argparse.Namespace) -> Any:
    from densevit.sweep.plan import make_plan

    return make_plan(Path(options.file), outputs_root(options.outputs))


def _parsed(name: str, text: str) -> Any:
    """A flag's text as its field wants it; numbers and mappings are written as in YAML."""
    if FIELDS[name].annotation in (str, str | None) and not isinstance(FIELDS[name].default, dict):
        return text
    return yamlfile.parse(f"value: {text}", f"--{name.replace('_', '-')} {shlex.quote(text)}")[
        "value"
    ]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and point to the nearest flag."""

    def __init__(self, program: str | None = None, **options: Any) -> None:
        options.setdefault("prog", program)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split()[0]
            message = f"{wrong}: unknown; {nearest(wrong, self._all_flags())}"
        self.exit(EXIT_MISTAKE, f"{self.prog}: {message}\n")

    def _all_flags(self) -> list[str]:
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    flags += parser._option_string_actions
        return flags


def _run_command(program: str, parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    options = parser.parse_args(arguments)
    try:
        return options.call(options)
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except RunError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_FAILED
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
