"""Mutation testing: put small faults into a file, one at a time; its tests must detect each.

    python bench/mutants.py FILE [FILE ...] [--tests TEST ...] [--count N] [--jobs N]

The tests of `package/stem.py` are `test_stem.py` or, if there is none, those that import it. They
run in copies of the working tree on `--count` mutants per file, drawn with a fixed seed. A mutant
is `killed`, `timeout` (the tests hung) or `survived` (a test is missing, or the change makes no
difference). Exit codes: 0 none survived, 1 some did, 2 a wrong argument or tests that fail without
a mutant.
"""

import ast
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from densevit.cli.parser import Parser, positive
from densevit.utils.errors import EXIT_FAILED, UserError, nearest

PAIRS = """Add Sub, Mult Div, FloorDiv Mod, BitAnd BitOr, And Or, Lt LtE, Gt GtE, Eq NotEq, Is IsNot
, In NotIn, min max, minimum maximum, argmin argmax, any all, floor ceil, zeros ones, sum mean"""
SWAPS = {a: b for pair in map(str.split, PAIRS.split(",")) for a, b in (pair, pair[::-1])}
DROPPED_METHODS = {"abs", "clone", "contiguous", "copy", "detach", "double", "float"}
KEPT_FIELDS = {"annotation", "returns", "exc"}  # left unchanged, like nodes that start with KEPT
KEPT = ("log.", "warnings.", "if TYPE_CHECKING", "help=", "metavar=", "description=", "f'", 'f"')


def changes(node: ast.AST, field: str) -> Iterator[ast.AST]:
    """Yield the nodes that replace `node`, the `field` of another node, in mutants."""
    if field == "test" and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.operator() | ast.boolop() | ast.cmpop() if type(node).__name__ in SWAPS:
            yield getattr(ast, SWAPS[type(node).__name__])()
        case ast.Name(name) | ast.Attribute(attr=name) if field == "func" and name in SWAPS:
            yield ast.Name(ast.unparse(node).removesuffix(name) + SWAPS[name])
        case ast.Call(ast.Attribute(value, name), []) if name in DROPPED_METHODS:
            yield value
        case ast.Call() if field == "decorator_list":  # such as @torch.no_grad()
            yield ast.Name("(lambda function: function)")
        case ast.keyword(str()):
            yield ast.keyword(None, ast.Dict([], []))  # **{}: no argument
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(type(value)({0: 1, 1: 0}.get(value, value + 1)))
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield operand
        case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))
        case ast.Assign([ast.Attribute() | ast.Subscript()]) | ast.Raise() | ast.Expr(ast.Call()):
            yield ast.Pass()


def mutants(tree: ast.Module, node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the new text of each mutant of a module with a change below a node."""
    for field, value in ast.iter_fields(node):
        parts = value if isinstance(value, list) else vars(node)
        for key in range(len(value)) if parts is value else {field} - KEPT_FIELDS:
            if isinstance(old := parts[key], ast.AST) and not ast.unparse(old).startswith(KEPT):
                for new in changes(old, field):
                    parts[key] = new
                    yield (old if hasattr(old, "lineno") else node).lineno, ast.unparse(tree)
                parts[key] = old
                yield from mutants(tree, old)


def find_tests(file: str) -> list[str]:
    """Return the tests of a file of this folder: by their name, else by what they import."""
    *packages, stem = Path(file.removesuffix("/__init__.py")).with_suffix("").parts
    imports = rf"\b{'.'.join(packages)}(\.| import .*\b){stem}\b"
    tests = sorted(map(str, Path("tests").rglob("test_*.py")))
    named = [test for test in tests if Path(test).name == f"test_{stem}.py"]
    return named or [test for test in tests if re.search(imports, Path(test).read_text("utf-8"))]


def kill_processes(folder: str) -> None:
    """Kill every process whose TMPDIR is this folder or lies below it."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if f"TMPDIR={folder}".encode() in environment.read_bytes():
                os.kill(int(environment.parent.name), signal.SIGKILL)


def run_tests(file: str, text: str, tests: list[str], timeout: float | None = None) -> str:
    """Run tests on another text of a file, in a copy of this folder; return the outcome."""
    with tempfile.TemporaryDirectory(dir=Path.cwd().parent, ignore_cleanup_errors=True) as folder:
        tree = shutil.copytree(".", Path(folder, "tree"), symlinks=True)
        (tree / file).write_text(text, "utf-8")
        try:
            code = subprocess.call(
                [sys.executable, "-m", "pytest", "-x", *tests], cwd=tree, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(tree), "TMPDIR": folder}, timeout=timeout,
                stdout=subprocess.DEVNULL if timeout else sys.stderr, stderr=subprocess.STDOUT,
            )  # fmt: skip
            return "killed" if code else "survived"
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            kill_processes(folder)


def check_file(file: str, tests: list[str], count: int, pool: ThreadPoolExecutor) -> Iterator[str]:
    """Print and yield the outcome of each mutant of a file. Errors: `UserError`."""
    module = ast.parse(Path(file).read_text("utf-8"), file)
    plain, found = ast.unparse(module), list(mutants(module, module))
    drawn = sorted(random.Random(0).sample(found, min(count, len(found))))
    print(f"{file}: {len(drawn)} of {len(found)} mutants; {' '.join(tests)}", flush=True)
    start = time.monotonic()
    if not tests or run_tests(file, plain, tests) != "survived":
        raise UserError(f"{file}: its tests fail without a mutant, or there is none: say --tests")
    timeout = 10 + 5 * (time.monotonic() - start)
    outcomes = pool.map(lambda mutant: run_tests(file, mutant[1], tests, timeout), drawn)
    for (line, text), outcome in zip(drawn, outcomes, strict=True):
        pairs = zip(plain.split("\n"), text.split("\n"), strict=False)
        change = next(f"{a.strip()} -> {b.strip()}" for a, b in pairs if a != b)
        print(f"{outcome:8}  {file}:{line}  {change}", flush=True)
        yield outcome


def main() -> int:
    parser = Parser("mutants.py", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="a Python file of the tree")
    parser.add_argument("--tests", nargs="+", metavar="TEST", help="what pytest runs for each file")
    parser.add_argument("--count", type=positive, default=30, help="mutants of each file")
    parser.add_argument("--jobs", type=positive, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    listed = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], capture_output=True)
    tree = [name for name in listed.stdout.decode().split("\0") if os.path.lexists(name)]
    for file in set(given.files) - set(tree):
        parser.error(f"{file}: no such file in the working tree; {nearest(file, tree)}")
    pool = ThreadPoolExecutor(given.jobs)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, pool:
        try:
            for name in tree:
                Path(folder, "original", name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(name, Path(folder, "original", name), follow_symlinks=False)
            os.chdir(Path(folder, "original"))
            chosen = [(file, given.tests or find_tests(file)) for file in given.files]
            outcomes = [o for names in chosen for o in check_file(*names, given.count, pool)]
        except (UserError, SyntaxError) as error:
            parser.error(str(error))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_processes(folder)
    counts = [f"{outcomes.count(word)} {word}" for word in ("killed", "timeout", "survived")]
    print(f"\n{len(outcomes)} mutants:", ", ".join(counts))
    return EXIT_FAILED if "survived" in outcomes else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
