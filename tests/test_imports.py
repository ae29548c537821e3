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


def test_every_module_can_be_imported_first(tmp_path):
    """timm and torchvision need the guard above them, whichever module comes first."""
    # torch needs none, and takes most of the time.
    code = f"import importlib, os, sys, torch\nfor name in {_MODULES!r}:\n    if os.fork() == 0:\n"
    code += "        importlib.import_module(name)\n        os._exit(0)\n"
    code += "    if os.wait()[1] != 0: sys.exit(name)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
