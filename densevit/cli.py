"""The command `densevit`: parse, call, print.

Heavy modules are imported by the command that needs them; `--help` needs none.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densevit import __version__, yamlfile
from densevit.commandline import (
    Parser,
    add_outputs,
    add_tracking_uri,
    existing_run,
    heed_tracking_uri,
    run_command,
)
from densevit.compare_cli import add_compare
from densevit.config import FIELDS, RunConfig, identity
from densevit.data.cli import add_data
from densevit.errors import UserError
from densevit.eval_cli import add_eval
from densevit.layers import Layer, absolute_paths, build, read_layers, source_of
from densevit.rundir import RunFolder, outputs_root, read_json, run_folder
from densevit.show_cli import add_show
from densevit.sweep.cli import main_sweep
from densevit.sync_cli import add_sync
from densevit.ui_cli import add_ui

__all__ = ["main", "main_sweep"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `densevit`. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["sweep"]:
        return main_sweep(given[1:], program="densevit sweep")
    parser = Parser("densevit", description="Train and compare Vision Transformers with dense, "
                     "global or no contrastive learning.")  # fmt: skip
    parser.add_argument("--version", action="version", version=f"densevit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    add_data(commands)
    add_eval(commands)
    add_show(commands)
    add_compare(commands)
    _add_export(commands)
    add_sync(commands)
    add_ui(commands)
    commands.add_parser("sweep", help="run a grid of configurations (the same as densevit-sweep)")
    return run_command("densevit", parser, given)


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train and evaluate one run, or carry it on",
        description="Train and evaluate one run, or carry it on. Flags override --config.",
    )
    train.set_defaults(call=_train)
    train.add_argument("--config", metavar="FILE", help="YAML with any of the fields below")
    add_outputs(train)
    train.add_argument("--no-tracking", action="store_true", help="leave MLflow out")
    add_tracking_uri(train)
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
    add_outputs(export)


def _train(options: argparse.Namespace) -> int:
    from densevit.distributed import world
    from densevit.lifecycle import execute
    from densevit.progress import showing

    if options.run_dir:
        # Started by a launcher, which keeps what is printed in the run's log.
        return execute(RunFolder(Path(options.run_dir)))
    heed_tracking_uri(options.tracking_uri)
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
        from densevit.tracking.beside import mirroring

        starting = folder.status().state != "finished"
        with mirroring(outputs, [folder.path.name], None, starting=starting):
            return execute(folder)


def _export(options: argparse.Namespace) -> int:
    folder = existing_run(options.run, outputs_root(options.outputs))
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


def _parsed(name: str, text: str) -> Any:
    """A flag's text as its field wants it; numbers and mappings are written as in YAML."""
    if FIELDS[name].annotation in (str, str | None) and not isinstance(FIELDS[name].default, dict):
        return text
    return yamlfile.parse(f"value: {text}", f"--{name.replace('_', '-')} {shlex.quote(text)}")[
        "value"
    ]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
