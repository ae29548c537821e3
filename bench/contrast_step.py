"""Measure the time and memory of a training step with each contrastive loss, and without.

    python bench/contrast_step.py [--model NAME] [--batch N] [--arms none,dense,...] [--json FILE]

A step is a whole one: both views forward, the losses, backward, gradient clipping, AdamW and the
queue, on random images in memory. Each arm has its own process, so that its peak memory is its own.
The processes work one at a time, in turn, round after round, so that a slow moment of the machine
affects all alike. A turn begins with an untimed step. Compare ratios, not milliseconds.

Prints a Markdown table, one row per arm. Times and ratios are medians over the rounds; a ratio is
to the step of `none` (or `dense`) in the same round, with its quartiles in brackets. Memory is the
largest resident set of the process on a CPU, with imports and weights, and torch's peak allocation
on a GPU; `before` is the same before the first step. `--json` writes all of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from harness import markdown, quartiles

from densevit.cli.parser import positive
from densevit.config import yaml_file
from densevit.config.resolve import Layer, build
from densevit.config.run_config import RunConfig
from densevit.utils.errors import EXIT_FAILED, EXIT_MISTAKE, RunError, UserError, nearest

# The settings of each arm; `queries` also takes --query-patches.
ARMS: dict[str, dict[str, str]] = {
    "none": {"cl_mode": "none"},
    "global": {"cl_mode": "global"},
    "dense": {"cl_mode": "dense"},
    "queries": {"cl_mode": "dense"},
    "joint": {"cl_mode": "joint"},
    "diverse": {"cl_mode": "dense", "sampling_strategy": "diverse"},
    "hardest": {"cl_mode": "dense", "sampling_strategy": "hardest"},
    "plain": {"cl_mode": "dense"},
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = _options(given)
        configs = {arm: _config(arm, options) for arm in options.arms}
        machine, seconds, memory = measure(configs, options)
    except (UserError, RunError) as error:
        print(f"contrast_step.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE if isinstance(error, UserError) else EXIT_FAILED
    result = {
        "command": shlex.join(["python", "bench/contrast_step.py", *given]),
        "machine": machine,
        "settings": {k: v for k, v in vars(options).items() if k not in ("arms", "json")},
        "arms": {arm: summary(arm, seconds, memory) for arm in configs},
    }
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _options(given: Sequence[str]) -> argparse.Namespace:
    parser = _Parser("contrast_step.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--arms", type=_arms, default=",".join(ARMS), help=f"of {', '.join(ARMS)} (all)")
    add("--model", default="vit_tiny_patch16_224", help="any ViT of timm (%(default)s)")
    add("--model-kwargs", type=lambda text: yaml_file.parse(text, "--model-kwargs"), default="{}",
        help="of the model, in YAML, such as '{img_size: 32}'")  # fmt: skip
    add("--batch", type=int, default=8, help="images per step (%(default)s)")
    add("--queue", type=int, default=65536, help="negatives (%(default)s)")
    add("--query-patches", type=_queries, default="50", help="of the arm queries (%(default)s)")
    add("--sampled-patches", type=int, default=50, help="that enter the queue (%(default)s)")
    add("--key-encoder", choices=["shared", "momentum"], default="shared", help="(%(default)s)")
    add("--repeat-pictures", action="store_true", help="the same image ids in every step, so "
        "that entries of the queue are excluded; otherwise they are new in each")  # fmt: skip
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="(%(default)s)")
    add("--precision", choices=["float32", "bf16", "fp16"], default="float32", help="of products")
    add("--threads", type=positive, help="of torch on the CPU (torch's own choice)")
    add("--rounds", type=positive, default=12, help="turns of each arm (%(default)s)")
    add("--steps", type=positive, default=2, help="timed steps a turn (%(default)s)")
    add("--warmup", type=positive, default=2, help="steps before the rounds (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="where the numbers go")
    options = parser.parse_args(given)
    if options.query_patches == "all":  # the same as the arm dense
        options.arms = [arm for arm in options.arms if arm != "queries"]
    if options.json and not options.json.parent.is_dir():
        raise UserError(f"--json: no such folder: {options.json.parent}")
    return options


def _arms(text: str) -> list[str]:
    """Return the arms in the order of ARMS, including those that they are compared with."""
    names = {name.strip() for name in text.split(",")}
    for name in sorted(names - set(ARMS)):
        raise UserError(f"--arms: unknown arm {name!r}; {nearest(name, ARMS)}")
    names |= {"none"} | ({"dense"} if names & {"diverse", "hardest", "plain"} else set())
    return [arm for arm in ARMS if arm in names]


def _queries(text: str) -> str | int:
    return "all" if text == "all" else positive(text)


def _config(arm: str, options: argparse.Namespace) -> RunConfig:
    settings = {
        "model_name": options.model,
        "model_kwargs": options.model_kwargs,
        "batch_size": options.batch,
        "queue_size": options.queue,
        "sampled_patches": options.sampled_patches,
        "key_encoder": options.key_encoder,
        "device": options.device,
        "precision": options.precision,
        **ARMS[arm],
    }
    if arm == "queries":
        settings["query_patches"] = options.query_patches
    return build([Layer("command line", settings)])


def measure(
    configs: dict[str, RunConfig], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, list[float]], dict[str, dict[str, float]]]:
    """Return the machine, the seconds per step of each arm in each round, and each arm's memory."""
    load = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")  # a fork would inherit memory
    pipes: dict[str, Connection] = {}
    for arm, config in configs.items():
        pipes[arm], theirs = context.Pipe()
        context.Process(target=_serve, args=(theirs, arm, config, options), daemon=True).start()
        theirs.close()
    machines = [_reply(pipe, arm) for arm, pipe in pipes.items()]  # waits until all are ready
    for arm, pipe in pipes.items():
        _progress(f"warm-up: {arm}")
        _reply(pipe, arm, options.warmup)
    seconds: dict[str, list[float]] = {arm: [] for arm in configs}
    arms = list(configs)
    for number in range(options.rounds):
        _progress(f"round {number + 1} of {options.rounds}")
        start = number % len(arms)  # no arm keeps its place in the order
        for arm in arms[start:] + arms[:start]:
            seconds[arm].append(_reply(pipes[arm], arm, options.steps) / options.steps)
    _progress("")
    memory = {arm: _reply(pipe, arm, 0) for arm, pipe in pipes.items()}
    return {**machines[0], "load_before": load}, seconds, memory


def _reply(pipe: Connection, arm: str, steps: int | None = None) -> Any:
    """Return the reply of `contrast_arm.serve`: the seconds of some steps or, to 0, the memory."""
    try:
        if steps is not None:
            pipe.send(steps)
        reply = pipe.recv()
    except (EOFError, OSError):
        raise RunError(f"{arm}: its process has ended (out of memory?)") from None
    if isinstance(reply, Exception):
        raise reply
    return reply


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<30}", end="" if text else "\r", file=sys.stderr, flush=True)


def _serve(pipe: Connection, arm: str, config: RunConfig, options: argparse.Namespace) -> None:
    """Run the process of an arm. torch is imported only here, so that wrong arguments fail fast."""
    try:
        from contrast_arm import serve

        serve(pipe, config, options, plain=arm == "plain")
    except UserError as error:
        pipe.send(error)
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the requester is gone
    except Exception as error:  # one line for the user
        pipe.send(RunError(f"{arm}: {type(error).__name__}: {' '.join(str(error).split())}"))


def summary(
    arm: str, seconds: dict[str, list[float]], memory: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return the numbers of an arm; a ratio is [first quartile, median, third quartile]."""
    ratios = {
        f"to_{other}": quartiles([a / b for a, b in zip(seconds[arm], base, strict=True)])
        for other, base in seconds.items()
        if other in ("none", "dense")
    }
    extra = 100 * (memory[arm]["peak_mib"] / memory["none"]["peak_mib"] - 1)
    ms = 1000 * statistics.median(seconds[arm])
    return {"ms": ms, **ratios, **memory[arm], "extra_percent": extra, "seconds": seconds[arm]}


def table(result: dict[str, Any]) -> str:
    """Return the result in Markdown."""
    machine, settings = result["machine"], result["settings"]
    labels = {
        "queries": f"dense, {settings['query_patches']} queries",
        "diverse": "dense, diverse sampling",
        "hardest": "dense, hardest sampling",
        "plain": "dense, plain logits",
    }
    place = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    rows = []
    for arm, row in result["arms"].items():
        cells = [labels.get(arm, arm), f"{row['ms']:.0f}"]
        cells += [_ratio(row.get("to_none")), _ratio(row.get("to_dense"))]
        cells += [f"{row['before_mib']:.0f}", f"{row['peak_mib']:.0f}"]
        rows.append([*cells, f"{row['extra_percent']:+.1f} %"])
    head = ["arm", "ms", "ratio to none", "ratio to dense", "before MiB", "peak MiB", "extra"]
    return (
        f"`{result['command']}`\n"
        f"{place} ({machine['cores']} cores), torch {machine['torch']}, {settings['rounds']} "
        f"rounds of {settings['steps']} steps, load before {machine['load_before']:.2f}\n\n"
        + markdown(head, rows)
    )


def _ratio(quartiles: list[float] | None) -> str:
    if quartiles is None:
        return ""
    low, middle, high = quartiles
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


if __name__ == "__main__":
    sys.exit(main())
