"""What is imported when: quick commands stay quick, and every module imports on its own."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
NOT_FOR_TRAINING = ("mlflow", "pandas", "matplotlib", "ray", "submitit")

_FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "densevit").rglob("*.py"))
    if file.name != "__main__.py"
}
_TREES = {name: ast.parse(file.read_text()) for name, file in _FILES.items()}


def at_import(node: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported, in order."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(part, ast.stmt):
            yield part
        if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING":
            continue
        yield from at_import(part)


def imports(statement: ast.AST) -> list[str]:
    """Return the modules that a statement imports directly."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom):
        assert statement.level == 0, "by its whole name"
        inner = [f"{statement.module}.{alias.name}" for alias in statement.names]
        return [name for name in inner if name in _FILES] or [statement.module]
    return []


def imported_at_once(name: str) -> list[str]:
    return [module for statement in at_import(_TREES[name]) for module in imports(statement)]


def imported_by(code: str, cwd: Path) -> set[str]:
    """Return the top-level modules that are loaded after running code in a fresh process."""
    ending = "\nimport json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, cwd=cwd, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


SWEEP = "name: a\ngrid: {cl_mode: [none, global, dense], temperature: [0.1, 0.2]}\nseeds: 2\n"


@pytest.mark.parametrize(
    "code",
    [
        "from densevit.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass",
        "from densevit.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: pass",
        "from densevit.cli.main import main_sweep\ntry: main_sweep(['--help'])\nexcept SystemExit: pass",
        "from densevit.cli.main import main_sweep\nmain_sweep(['plan', 'sweep.yaml'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['plan', 'sweep.yaml', '--json'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['status', 'sweep.yaml', '--json'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['sweep.yaml', '--dry-run'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['plan', '--diff', 'sweep.yaml', 'sweep.yaml'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['logs', 'sweep.yaml', '--failed'])",
        "from densevit.cli.main import main_sweep\nmain_sweep(['cancel', 'sweep.yaml'])",
    ],
)
def test_quick_commands_import_nothing_heavy(tmp_path, code):
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert imported_by(code, tmp_path).isdisjoint(HEAVY)


# Code that training imports does not import torchvision before the guard, and does not import
# tracking. The code of the figures leaves pyplot, and with it the user's settings, alone. Then each
# of our modules can be imported.
_IMPORT = """
import json, sys
from importlib import import_module
others, ours = map(json.loads, sys.argv[1:])
for name in others:
    import_module(name)
    assert 'torchvision' not in sys.modules, name
import densevit.train.execute, densevit.train.loop
print(json.dumps(sorted(sys.modules)))
import densevit.results.report.write
for name in 'accuracy', 'cost', 'curves', 'effects', 'feature_health', 'forest', 'heatmap', 'robustness':
    assert f'densevit.results.figures.{name}' in sys.modules, name
assert 'matplotlib.pyplot' not in sys.modules
for name in ours:
    import_module(name)
"""


def test_every_module_can_be_imported_and_none_imports_what_it_must_not(tmp_path):
    needed, asked = {"densevit.train.execute", "densevit.train.loop"}, set()
    while asked != needed & _FILES.keys():
        asked |= needed & _FILES.keys()
        needed |= {name for module in asked for name in imported_at_once(module)}
    others = sorted(n for n in needed if n.split(".")[0] not in ("densevit", "timm", "torchvision"))
    assert "torch" in others
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT, json.dumps(others), json.dumps([*_FILES])],
        capture_output=True, text=True, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"torch", "densevit"} <= loaded
    assert loaded.isdisjoint(NOT_FOR_TRAINING)


def test_whichever_module_comes_first_none_needs_itself():
    """Imports inside functions happen later, when every module is complete."""
    graph = {name: [n for n in imported_at_once(name) if n in _FILES] for name in _FILES}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()  # or it names a cycle


def mended(body: list[ast.stmt], already: bool = False) -> Iterator[tuple[int, bool]]:
    """Return the line of each import of timm or torchvision, and whether the guard was called above
    it."""
    for statement in body:
        if isinstance(statement, ast.Expr) and ast.unparse(statement) == "ensure_torchvision()":
            already = True
        if {name.split(".")[0] for name in imports(statement)} & {"timm", "torchvision"}:
            yield statement.lineno, already
        for part in ("body", "orelse", "finalbody"):
            yield from mended(getattr(statement, part, []), already)
        for part in getattr(statement, "handlers", []):
            yield from mended(part.body, already)


def test_timm_and_torchvision_have_the_guard_above_them():
    found = [
        (name, *where)
        for name, tree in _TREES.items()
        if name != "densevit.utils.torchvision_compat"
        for where in mended(tree.body)
    ]
    assert len(found) > 5
    assert [(name, line) for name, line, guarded in found if not guarded] == []
