"""`densevit train`: train one run from a config file, flags, or its run directory."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from densevit.cli.parser import Commands, add_outputs, add_tracking_uri, set_tracking_uri
from densevit.config import yaml_file
from densevit.config.identity import identity
from densevit.config.paths import absolute_paths
from densevit.config.resolve import Layer, build, read_layers, source_of
from densevit.config.run_config import FIELDS, RunConfig
from densevit.runs.directory import RunFolder, outputs_root, run_folder
from densevit.runs.initial_file import with_initial_digest
from densevit.utils.cache import use_writable_cache
from densevit.utils.console import say
from densevit.utils.errors import UserError


def add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="train and evaluate one run, or resume it",
        description="Train and evaluate one run, or resume it. Flags override --config.",
    )
    train.set_defaults(call=_train, starts_runs=True)
    train.add_argument("--config", metavar="FILE", help="YAML with any of the fields below")
    add_outputs(train)
    train.add_argument("--no-tracking", action="store_true", help="do not send the run to MLflow")
    add_tracking_uri(train)
    train.add_argument("--run-dir", metavar="DIR", help=argparse.SUPPRESS)
    for name, field in FIELDS.items():
        default = "" if field.default is None else f" (default: {_flag_text(field.get_default())})"
        flag = train.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"field_{name}",
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description}{default}".replace("%", "%%"),
        )
        if isinstance(field.default, bool):
            flag.nargs, flag.const, flag.metavar = "?", "true", "BOOL"


def _train(options: argparse.Namespace) -> int:
    from densevit.train.execute import execute
    from densevit.train.progress import showing
    from densevit.utils.distributed import world

    if options.run_dir:
        use_writable_cache(Path(options.run_dir).absolute().parent.parent)
        # Started by a launcher, which redirects the output to the run's log.
        return execute(RunFolder(Path(options.run_dir)))
    set_tracking_uri(options.tracking_uri)
    layers = read_layers(Path(options.config)) if options.config else []
    given = {name: getattr(options, f"field_{name}") for name in FIELDS}
    flags = {name: text for name, text in given.items() if text is not None}
    settings = {name: _parsed(name, text) for name, text in flags.items()}
    layers = [*layers, Layer("command line", absolute_paths(settings, Path.cwd()))]
    config = with_initial_digest(build(layers), source_of(layers, "init_checkpoint"))
    outputs = outputs_root(options.outputs)
    use_writable_cache(outputs)
    folder = run_folder(outputs, identity(config).run)
    _check_run(config, layers, folder)
    if not world().writes:
        return execute(folder, config)
    folder.create(config)
    say(f"run {folder.path.name} in {folder.path}")
    with showing():
        if options.no_tracking:
            return execute(folder)
        from densevit.tracking.mirror_process import mirroring

        starting = folder.status().state != "finished"
        with mirroring(outputs, [folder.path.name], None, starting=starting):
            return execute(folder)


def _check_run(config: RunConfig, layers: list[Layer], folder: RunFolder) -> None:
    """Check that a run can start, before its directory is created or changed."""
    from densevit.config.model_names import check_names
    from densevit.data.check_contents import check_contents
    from densevit.data.datasets import check_fingerprint, open_data
    from densevit.evaluate.measured_on import measured_on

    check_names(config, lambda key: source_of(layers, key))
    from densevit.runs.checkpoint_files import newest_first
    from densevit.train.preflight import check_device
    from densevit.train.rehearsal import rehearse, rehearse_loading
    from densevit.utils.distributed import world

    try:
        check_device(config)
        size = rehearse(config)
        if config.init_checkpoint and not newest_first(folder.checkpoint_folder):
            rehearse_loading(config)
        data = open_data(config, size)
        if world().writes:
            check_contents(data)
        fingerprint = measured_on(config, data, size)
    except UserError as error:
        key = str(error).split(":")[0]
        raise UserError(f"{source_of(layers, key)}: {error}") from None
    record = folder.fingerprint()
    if record is not None:
        check_fingerprint(record, fingerprint, folder.path)


def _parsed(name: str, text: str) -> Any:
    """Return a flag's text as a value of its field; numbers and mappings are parsed as YAML."""
    if FIELDS[name].annotation in (str, str | None) and not isinstance(FIELDS[name].default, dict):
        return text
    return yaml_file.parse(f"value: {text}", f"--{name.replace('_', '-')} {shlex.quote(text)}")[
        "value"
    ]


def _flag_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
