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
# holds what they would spend most of their time on, and nothing of ours. torchvision and timm are
# hidden there: who asks for torchvision is given it if that is the guard, and else is told what
# there is to tell beside a CPU build of torch, whatever build this is.
_IMPORT_EACH_FIRST = """
import gc, importlib, os, sys
from importlib.util import spec_from_loader
import matplotlib.figure, pandas, pyarrow.parquet, pydantic, rich.console, scipy.stats, torch
import torch._dynamo  # torchvision's dearest part

def beginning(package):
    return {name for name in sys.modules if name.split('.')[0] == package}

def hidden(package):
    return {name: sys.modules.pop(name) for name in beginning(package)}

assert not beginning('torchvision') | beginning('timm')
from densevit.torchvision_guard import ensure_torchvision
ensure_torchvision()
alone = beginning('torchvision')
import timm
timms = hidden('timm') | {name: sys.modules[name] for name in beginning('torchvision') - alone}
torchvisions = {name: module for name, module in hidden('torchvision').items() if name in alone}
hidden('densevit')

class Given:
    def find_spec(self, name, path=None, target=None):
        held = {'torchvision': torchvisions, 'timm': timms}.get(name)
        if held is None or name == 'timm' and 'torchvision' not in sys.modules:
            return None
        if name == 'torchvision' and not self.guarded():
            raise RuntimeError('torchvision is imported without the guard')
        self.module = held[name]
        sys.modules.update(held)
        return spec_from_loader(name, self)

    def guarded(self):
        frame = sys._getframe()
        while frame and frame.f_globals['__name__'] != 'densevit.torchvision_guard':
            frame = frame.f_back
        return frame

    def create_module(self, spec):
        return self.module

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Given())
sys.dont_write_bytecode, sys.pycache_prefix = False, os.getcwd()  # our files are compiled once
gc.disable()  # it would look through all of that again and again
for name in sys.argv[1:]:
    print(name, flush=True)
    if os.fork() == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(1)
"""


def test_every_module_can_be_imported_first(tmp_path):
    """timm and torchvision need the guard above them, whichever module comes first."""
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_EACH_FIRST, *_MODULES],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == _MODULES
