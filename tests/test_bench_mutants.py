"""Mutants: which are generated, the outcome of each, and that the working tree does not change."""

import ast
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(FOLDER))

from mutants import find_tests, mutants, run_tests  # noqa: E402

CHANGES = {
    "c = a - b * 2": {"c = a + b * 2", "c = a - b / 2", "c = a - b * 3"},
    "c = -x if x else 0.5": {"c = x if x else 0.5", "c = -x if not x else 0.5", "c = -x if x else 1.5"},
    "c = min(x.detach(), d=k)": {"c = max(x.detach(), d=k)", "c = min(x, d=k)", "c = min(x.detach(), **{})"},
    "a.b = c; f(a); raise X(1 + 1)": {"pass\nf(a)\nraise X(1 + 1)", "a.b = c\npass\nraise X(1 + 1)", "a.b = c\nf(a)\npass"},
    "@g()\ndef f(a: X[2]):\n    return a": {"@(lambda function: function)\ndef f(a: X[2]):\n    return a", "@g()\ndef f(a: X[2]):\n    return None"},
    '"""Adds 1 + 1."""\na: X[2] = f"{1 + 1}"\nlog.info("%d", 1 + 1)': set(),  # messages only
}  # fmt: skip
PROJECT = {
    "shop/till.py": "def at_least(price, floor):\n    if price < floor:\n        return floor\n    return price\n",
    "tests/a/test_till.py": "from shop import till\ndef test():\n    assert [till.at_least(p, 2) for p in (1, 3)] == [2, 3]\n",
    "tests/test_other.py": "from shop import door, till\nassert False\n",
    "tests/test_interrupt.py": "import os, time\nos.kill(os.getppid(), 15)\ntime.sleep(600)\n",
}


@pytest.mark.parametrize("text", CHANGES)
def test_each_mutant_has_one_change(text):
    tree = ast.parse(text)
    assert sorted(mutant for _, mutant in mutants(tree, tree)) == sorted(CHANGES[text])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a package with tests; temporary files go to a folder next to it."""
    for name, text in PROJECT.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "tree")
    subprocess.run(["git", "init", "--quiet"], check=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # pytest starts sooner
    options = {"capture_output": True, "text": True, "timeout": 240}
    return lambda *names: subprocess.run([sys.executable, FOLDER / "mutants.py", *names], **options)


def test_a_mutant_that_no_test_sees_is_named_and_the_tree_is_left_alone(run, tmp_path):
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    done = run("shop/till.py", "--jobs", "2")
    # A price equal to its own floor gives the same on both branches: no test can see the first
    # mutant.
    outcomes = """shop/till.py: 3 of 3 mutants; tests/a/test_till.py
survived  shop/till.py:2  if price < floor: -> if price <= floor:
killed    shop/till.py:3  return floor -> return None
killed    shop/till.py:4  return price -> return None\n
3 mutants: 2 killed, 0 timeout, 1 survived\n"""
    assert (done.returncode, done.stdout) == (1, outcomes), done.stderr
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_wrong_name_and_tests_that_fail_without_a_mutant_end_with_2(run):
    done = run("shop/tell.py")
    assert (done.returncode, "did you mean 'shop/till.py'?" in done.stderr) == (2, True)
    assert find_tests("shop/till.py") == ["tests/a/test_till.py"], "by its name"
    assert find_tests("shop/door.py") == ["tests/test_other.py"], "by what it imports"
    done = run("shop/till.py", "--tests", "tests/test_other.py")
    assert (done.returncode, "its tests fail without a mutant" in done.stderr) == (2, True)


def test_an_interrupt_leaves_nothing_behind(run, tmp_path):
    done = run("shop/till.py", "--tests", "tests/test_interrupt.py")
    assert done.returncode == -signal.SIGINT, "as Python ends after Ctrl-C"
    assert list((tmp_path / "temporary").iterdir()) == []


def test_tests_that_hang_are_a_timeout_and_no_process_outlives_its_mutant(run, tmp_path):
    assert run_tests("shop/till.py", "while True: pass", ["tests/a"], timeout=0.1) == "timeout"
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    text = "import subprocess as s\ns.Popen(['sleep', '600'], stdout=open('../../fifo', 'w'), start_new_session=True)"
    assert run_tests("shop/till.py", text, ["tests/a"], timeout=240) == "killed"
    assert select.select([reader], [], [], 60)[0], "the fifo has no writer left"
    os.close(reader)
