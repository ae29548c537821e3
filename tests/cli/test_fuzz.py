"""Sweep files, experiment files, command lines and run directories, changed at random.

Every command ends within seconds with 0, 1, 2 or 75, and shows no traceback. The changes are drawn
from a seed, so that a failure can be repeated.
"""

import copy
import json
import random
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import damage
import pytest
import yaml

from densevit.cli.main import main
from densevit.cli.sweep import main_sweep
from densevit.launch.slurm import commands
from densevit.utils.errors import UserError

ODD = [
    None, True, "", "text", 0, -1, 3, 1.5, 1e308, float("nan"), float("inf"), 10**9, 10**30, [], {},
    [None], [[]], {"a": None}, {"cl_mode": "dense"}, ["dense", "dense"], "\u202e", "e\u0301" * 300,
    "\x1b[31m", "a\nb", "a\0b", "../../etc", "$HOME", "~", "*", "!", "-", "1e3", "null", "0x1F", "2026-01-01",
]  # fmt: skip
RUN = {
    "dataset": "shapes", "model_name": "vit_tiny_patch16_224", "epochs": 4, "warmup_epochs": 0,
    "model_kwargs": {"img_size": 32, "patch_size": 4}, "batch_size": 8, "temperature": 0.2,
    "benchmarks": {"mine": "folder", "other": {"path": "folder", "classes": "folder"}},
    "watched": ["mine"], "probes": ["knn"], "void": [0, 255], "seed": 1, "data_dir": "images",
}  # fmt: skip
SWEEPS = [
    {
        "name": "a", "description": "text", "base": "run.yaml", "fixed": {"epochs": 3},
        "grid": {"cl_mode": ["none", "dense"], "temperature": [0.1, 0.2]}, "seeds": 2,
        "baseline": {"cl_mode": "none"}, "notify": "true",
        "exclude": [{"where": {"cl_mode": "dense", "temperature": 0.1}, "because": "too slow"}],
        "include": [{"cl_mode": "joint"}],
        "resources": {"gpus": 1, "hours": 2, "mem": "8G",
                      "when": [{"where": {"cl_mode": "dense"}, "hours": 4}]},
    },
    {
        "name": "b", "fixed": {"dataset": "shapes"}, "seeds": [0, 1],
        "zip": [{"batch_size": [8, 16], "learning_rate": [0.1, 0.2]}],
        "search": {"method": "random", "samples": 4, "seed": 0,
                   "space": {"temperature": {"loguniform": [0.05, 1.0]},
                             "cl_mode": {"choice": ["dense", "global"]}}},
        "launcher": "ray", "ray": {"max_failures": 1},
        "early_stop": {"rule": "median", "min_epochs": 1, "allow_biased": True},
    },
]  # fmt: skip


def mutated(data, chance):
    """Return a copy of data with one to three parts replaced, removed, renamed or nested."""
    data = copy.deepcopy(data)
    for _ in range(chance.randint(1, 3)):
        spots = list(_spots(data))
        if not spots:
            break
        part, key = chance.choice(spots)
        how = chance.randrange(6)
        if how == 0:
            del part[key]
        elif how == 1 and isinstance(part, dict):
            part[chance.choice(["", "unknown", "grd", 5, None, "seed", "\u202e"])] = part.pop(key)
        elif how == 2:
            for _ in range(chance.choice([1, 2, 60])):
                part[key] = [part[key]] if chance.random() < 0.5 else {"a": part[key]}
        else:
            part[key] = copy.deepcopy(chance.choice(ODD))
    return data


def _spots(data):
    """Yield every place in nested data, as a container and a key."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, part in list(items):
        yield data, key
        if isinstance(part, dict | list):
            yield from _spots(part)


def scrambled(text, chance):
    """Return text with a line repeated or lost, or characters that mean something in YAML added."""
    if chance.random() < 0.6:
        return text
    lines = text.split("\n")
    place = chance.randrange(len(lines))
    added = ["\t", "&a [*a]", "*nothing", "<<: *a", "%YAML 9", "---", "!!python/name:os.system", "{",
             "]", "\ufeff", "\x00", "? x", "a: b: c", "'", "|", "a: " + "9" * 5000, "\u2028"]  # fmt: skip
    how = chance.randrange(5)
    if how == 0:
        lines.insert(place, lines[place])
    elif how == 1:
        lines[place] += chance.choice(added)
    elif how == 2:
        lines.insert(place, chance.choice(added))
    elif how == 3:
        del lines[place:]
    else:
        lines[place] = lines[place].replace(":", chance.choice(["", "::", ": &a", ": !!int"]), 1)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    made = damage.make_outputs(folder)
    shutil.copytree(made.plan.outputs, folder / "whole")
    for command in damage.commands(made).values():
        damage.call(command, 600)  # imports take seconds
    return made


@pytest.fixture(autouse=True)
def _starts_nothing(made, monkeypatch, tmp_path):
    """What would start, measure or serve something does nothing; files go to a folder of the test."""

    def refuses(*_, **__):
        raise UserError("made up: not in this test")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(commands, "queue", lambda users: {})
    monkeypatch.setattr(commands, "accounts", lambda jobs: {})
    for name in ("densevit.cli.sweep_run.execute", "densevit.cli.sweep_retry.execute",
                 "densevit.train.execute.execute"):  # fmt: skip
        monkeypatch.setattr(name, lambda *_, **__: 0)
    for name in ("densevit.cost.sweep_cost.cost", "densevit.cli.ui._become_server",
                 "densevit.cli.train._check_run"):  # fmt: skip
        monkeypatch.setattr(name, refuses)
    without_torch = SimpleNamespace(load_model=refuses)  # whose import takes seconds
    monkeypatch.setitem(sys.modules, "densevit.models.load", without_torch)
    monkeypatch.setattr(
        "densevit.tracking.mirror_process.mirroring", lambda *_, **__: nullcontext()
    )


def fault(case, call):
    """Return what is wrong with how a command ended, "" if nothing."""
    outcome = damage.call(call)
    if outcome.is_wrong:
        return f"{case}\n-> code {outcome.code}, {outcome.error!r} {outcome.err[-300:]}"
    return ""


def fuzz_files(tmp_path, chance, count):
    file, base, outputs = tmp_path / "sweep.yaml", tmp_path / "run.yaml", str(tmp_path / "outputs")
    for number in range(count):
        sweep, run = copy.deepcopy(chance.choice(SWEEPS)), RUN
        if number % 3 == 0:
            run = mutated(RUN, chance)
            sweep = SWEEPS[0]
        else:
            sweep = mutated(sweep, chance)
        texts = [yaml.safe_dump(each, sort_keys=False, allow_unicode=True) for each in (sweep, run)]
        texts[number % 3 == 0] = scrambled(texts[number % 3 == 0], chance)
        file.write_text(texts[0], encoding="utf-8")
        base.write_text(texts[1], encoding="utf-8")
        words = ["plan", str(file), "--outputs", outputs, *(["--json"] if number % 2 else [])]
        yield fault("\n".join(texts), lambda words=words: main_sweep(words))


def fuzz_words(made, chance, count):
    file, run, outputs = str(made.plan.spec.file), made.finished.id, str(made.plan.outputs)
    lines = [
        *(["sweep", name, file] for name in ("plan", "status")),
        ["sweep", "run", file, "--dry-run"], ["sweep", "plan", "--diff", file, file],
        ["sweep", "logs", file, run, "--lines", "3"], ["sweep", "cancel", file, run, "--yes"],
        ["sweep", "retry", file, run, "--class", "oom"], ["sweep", "explain", file, run],
        ["sweep", "report", file, "--format", "csv", "--metric", "top1"],
        ["compare", file, "cl_mode=none", "cl_mode=dense"], ["compare", run, made.plan.runs[1].id],
        ["eval", run, "--from-predictions"], ["ui", "damaged"], ["completion", "bash"],
        ["data", "check", "train=images", "--no-hash"], ["data", "prepare", "imagenet", "a.tar", "--to", "x"],
        ["train", "--epochs", "2", "--dataset", "shapes", "--no-tracking"],
    ]  # fmt: skip
    flags = ["--set", "--outputs", "--json", "--rows", "--format", "--jobs", "--budget", "--profile",
             "--launcher", "--estimate", "--difference", "--freeze", "--references", "--help",
             "--model-kwargs", "--benchmarks", "--seed", "--learning-rate", "--config", "--to"]  # fmt: skip
    values = ["", "text", "-1", "0", "1e999", "nan", "9" * 5000, "a=b", "epochs=2", "epochs=[]",
              "resources.mem=x", "seeds=0", "seeds=999999999", "=", "../../etc", "\udcff",
              "\x1b[31m", "{", "[1", "*", "cl_mode", run[:3], file, outputs, "--", "-x"]  # fmt: skip
    for _ in range(count):
        words = [*chance.choice(lines)]
        if words[0] not in ("data", "completion"):
            words += ["--outputs", outputs]
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(len(words)) if words else 0
            how = chance.randrange(4) if words else 1
            if how == 0:
                del words[place]
            elif how == 1:
                words.insert(place, chance.choice(values))
            elif how == 2:
                words[place] = chance.choice(values)
            else:
                words += [chance.choice(flags), *([chance.choice(values)] if place % 3 else [])]
        yield fault(json.dumps(words), lambda words=words: main(words))
        damage.restored(made.plan.outputs.parent / "whole", made.plan.outputs)


def fuzz_bytes(made, chance, count):
    whole, calls = made.plan.outputs.parent / "whole", list(damage.commands(made).items())
    files = sorted(path for path in whole.rglob("*") if path.is_file())
    for _ in range(count):
        damage.restored(whole, made.plan.outputs)
        path = made.plan.outputs / chance.choice(files).relative_to(whole)
        content = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 4)):
            if content:
                content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content)
        name, call = chance.choice(calls)
        yield fault(f"{name}, {path}: {bytes(content)[:400]!r}", call)


@pytest.mark.parametrize("kind", ["files", "words", "bytes"])
@pytest.mark.parametrize(
    ("seed", "count"), [(0, 70), *(pytest.param(n, 1500, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_no_input_makes_a_command_fail(made, tmp_path, kind, seed, count):
    chance = random.Random(f"{kind} {seed}")
    found = {
        "files": lambda: fuzz_files(tmp_path, chance, count),
        "words": lambda: fuzz_words(made, chance, count),
        "bytes": lambda: fuzz_bytes(made, chance, count),
    }[kind]()
    assert [text for text in found if text] == []
