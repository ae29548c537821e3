"""What is imported when: quick commands stay quick, and every module stands on its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "torchvision",
    "timm",
    "mlflow",
    "ray",
    "submitit",
    "pandas",
    "matplotlib",
    "scipy",
)

_MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in (ROOT / "densevit").rglob("*.py")
    if file.name != "__main__.py"
)


def imported_by(code: str, cwd: Path) -> set[str]:
    """The top-level modules that are loaded after running some Python in a fresh process."""
    ending = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, cwd=cwd, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


SWEEP = "name: a\ngrid: {cl_mode: [none, global, dense], temperature: [0.1, 0.2]}\nseeds: 2\n"


@pytest.mark.parametrize(
    "code",
    [
        "from densevit.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from densevit.cli import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from densevit.cli import main_sweep\ntry: main_sweep(['--help'])\nexcept SystemExit: pass",
        "from densevit.cli import main_sweep\nmain_sweep(['plan', 'sweep.yaml'])",
        "from densevit.cli import main_sweep\nmain_sweep(['plan', 'sweep.yaml', '--json'])",
        "from densevit.cli import main_sweep\nmain_sweep(['status', 'sweep.yaml', '--json'])",
        "from densevit.cli import main_sweep\nmain_sweep(['sweep.yaml', '--dry-run'])",
        "from densevit.cli import main_sweep\nmain_sweep(['plan', '--diff', 'sweep.yaml', 'sweep.yaml'])",
        "from densevit.cli import main_sweep\nmain_sweep(['logs', 'sweep.yaml', '--failed'])",
        "from densevit.cli import main_sweep\nmain_sweep(['cancel', 'sweep.yaml'])",
    ],
)
def test_quick_commands_import_nothing_heavy(tmp_path, code):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert imported_by(code, tmp_path).isdisjoint(HEAVY)


def test_the_training_process_imports_no_tracking_and_no_tables(tmp_path):
    loaded = imported_by("import densevit.lifecycle, densevit.train", tmp_path)
    assert loaded.isdisjoint({"mlflow", "pandas", "matplotlib", "ray", "submitit"})


# Imports each of the named modules first, in a process of its own. Those are forked from one that
# holds what they would spend most of their time on: torch, pandas and pydantic, and what torchvision
# and timm load - but not these two themselves, nor anything of ours.
_IMPORT_EACH_FIRST = """
import gc, importlib, json, os, sys
import pandas, pydantic, torch

def apart(work):
    reading, writing = os.pipe()
    if os.fork() == 0:
        answer = json.dumps(work())
        with open(writing, 'w') as file:
            file.write(answer)
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        answer = file.read()
    if os.wait()[1] != 0:
        sys.exit(1)
    return json.loads(answer)

def below_timm():
    from densevit.torchvision_guard import ensure_torchvision
    ensure_torchvision()
    import timm
    ours = {'densevit', 'torchvision', 'timm'}
    return [name for name in sys.modules if name.split('.')[0] not in ours]

for name in apart(below_timm):
    if name not in sys.modules:
        importlib.import_module(name)
gc.disable()  # it would look through all of that again and again
for name in sys.argv[1:]:
    print(name, flush=True)
    apart(lambda: bool(importlib.import_module(name)))
"""


def test_every_module_can_be_imported_first(tmp_path):
    """timm and torchvision need the guard above them, whichever module comes first."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EACH_FIRST, *_MODULES],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == _MODULES
