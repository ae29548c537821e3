"""The copy of the code that jobs run: real processes in a small checkout of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import densevit
from densevit.launch import code_files, code_snapshot
from densevit.utils.errors import UserError

PACKAGE = Path(densevit.__file__).parent
TAKE = "import sys, pathlib; from densevit.launch.code_snapshot import take; "


def python(code, path, cwd, **options):
    """Run a process that finds the package in a folder, as a job's process does."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment = {**kept, "PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, cwd=cwd, text=True, stdout=subprocess.PIPE,
        **options,
    )  # fmt: skip


def said(code, path, cwd):
    process = python(code, path, cwd)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    return told.strip()


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *settings, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a repository with the current package, one commit, and one uncommitted line."""
    folder = tmp_path_factory.mktemp("checkout")
    kept_out = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(PACKAGE, folder / "densevit", ignore=kept_out)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "a")
    with (folder / "densevit/__init__.py").open("a") as file:
        file.write("# a line that nobody committed: é\n")
    return folder


def contents(package):
    return {
        str(file.relative_to(package)): file.read_bytes()
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_two_at_once_make_one_copy_that_runs_beside_its_checkout(checkout, tmp_path):
    outputs = tmp_path / "my outputs"
    wait = "print('ready', flush=True); sys.stdin.readline(); "
    code = TAKE + wait + f"print(take(pathlib.Path({str(outputs)!r})))"
    both = [python(code, checkout, checkout, stdin=subprocess.PIPE) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=600)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    (taken,) = set(told)
    copy = Path(taken)
    assert copy.parent == outputs / "code"
    assert list(copy.parent.iterdir()) == [copy], "no draft is left"

    # The content is that of the package, without compiled Python files.
    assert any(checkout.rglob("__pycache__")), "or this would show nothing"
    assert not any(copy.rglob("__pycache__"))
    assert sorted(file.name for file in copy.iterdir()) == ["densevit", "snapshot.json"]
    assert contents(copy / "densevit") == contents(checkout / "densevit")
    modes = {(file.is_dir(), file.stat().st_mode & 0o777) for file in [copy, *copy.rglob("*")]}
    assert modes == {(True, 0o700), (False, 0o600), (False, 0o400)}
    assert (copy / "snapshot.json").stat().st_mode & 0o777 == 0o600

    # A job that starts in the checkout runs the copy, and records its source.
    facts = "import densevit, json; from densevit.runs.provenance import git_state; "
    told = json.loads(
        said(facts + "print(json.dumps([densevit.__file__, git_state()]))", copy, checkout)
    )
    assert told[0] == str(copy / "densevit/__init__.py")
    assert told[1] == {
        "code": copy.name,
        "git_sha": git(checkout, "rev-parse", "HEAD"),
        "git_diff": git(checkout, "diff", "HEAD") + "\n",
    }
    assert "+# a line that nobody committed: é" in told[1]["git_diff"]

    # A copy of the copy is the same code under the same name.
    assert said(TAKE + f"print(take(pathlib.Path({str(tmp_path)!r})))", copy, checkout) == str(
        tmp_path / "code" / copy.name
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a package of two files that replaces the real one."""
    folder = tmp_path / "there" / "densevit"
    (folder / "sweep").mkdir(parents=True)
    (folder / "a.py").write_text("one = 1\n")
    (folder / "sweep/b.csv").write_text("")
    monkeypatch.setattr(code_snapshot, "PACKAGE", folder)
    monkeypatch.setattr(
        code_snapshot, "git_state", lambda diff: {"git_sha": None, "git_diff": None}
    )
    return folder


def test_the_same_code_is_one_copy_and_an_edited_one_another(package, tmp_path):
    first = code_snapshot.take(tmp_path)
    before = (first / "snapshot.json").stat()
    assert code_snapshot.take(tmp_path) == first
    after = (first / "snapshot.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (package / "a.py").write_text("one = 2\n")
    second = code_snapshot.take(tmp_path)
    assert second != first
    assert (first / "densevit/a.py").read_text() == "one = 1\n", "who waits runs what was there"
    assert (second / "densevit/a.py").read_text() == "one = 2\n"
    (package / "a.py").write_text("one = 1\n")
    assert code_snapshot.take(tmp_path) == first
    assert json.loads((first / "snapshot.json").read_text())["digest"] == first.name


def test_names_and_places_of_files_count_and_caches_and_hidden_files_do_not(package, tmp_path):
    first = code_snapshot.take(tmp_path)
    (package / "__pycache__").mkdir()
    (package / "__pycache__/a.pyc").write_bytes(b"x")
    (package / ".a.py.swp").write_bytes(b"x")
    assert code_snapshot.take(tmp_path) == first
    (package / "a.py").rename(package / "sweep/a.py")
    moved = code_snapshot.take(tmp_path)
    (package / "sweep/b.csv").rename(package / "sweep/c.csv")
    assert len({first, moved, code_snapshot.take(tmp_path)}) == 3
    assert contents(moved / "densevit").keys() == {"sweep/a.py", "sweep/b.csv"}


def test_a_copy_that_cannot_be_finished_leaves_nothing(package, tmp_path, monkeypatch):
    def full(path, data, private):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(code_snapshot, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        code_snapshot.take(tmp_path)
    assert list((tmp_path / "code").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: (copy / "snapshot.json").unlink(),
        lambda copy: (copy / "densevit/a.py").unlink(),
        lambda copy: (copy / "densevit/sweep/b.csv").rename(copy / "densevit/b.csv"),
        lambda copy: shutil.rmtree(copy / "densevit"),
        lambda copy: [file.unlink() for file in copy.rglob("*") if file.is_file()],
    ],
)
def test_what_is_left_of_a_copy_is_no_copy(package, tmp_path, damage):
    """Clean-up scripts that delete by age remove single files."""
    copy = code_snapshot.take(tmp_path)
    damage(copy)
    assert code_snapshot.take(tmp_path) == copy
    assert contents(copy / "densevit") == contents(package)
    assert json.loads((copy / "snapshot.json").read_text())["digest"] == copy.name
    before = (copy / "snapshot.json").stat().st_ino
    assert code_snapshot.take(tmp_path) == copy
    assert (copy / "snapshot.json").stat().st_ino == before, "and now it is one"
    assert {path.name for path in (tmp_path / "code").glob("[!.]*")} == {copy.name}


def test_what_python_compiles_beside_a_copy_is_no_damage(package, tmp_path):
    copy = code_snapshot.take(tmp_path)
    before = (copy / "snapshot.json").stat().st_ino
    (copy / "densevit/__pycache__").mkdir()
    (copy / "densevit/__pycache__/a.pyc").write_bytes(b"x")
    assert code_snapshot.take(tmp_path) == copy
    assert (copy / "snapshot.json").stat().st_ino == before


def test_what_git_tracks_and_new_python_files_are_copied(package, tmp_path):
    """And neither what git ignores, nor what a working tree also holds."""
    git(package.parent, "init", "-q")
    (package / ".gitignore").write_text("local.py\ndata/\n")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-q", "-m", "a")
    (package / "data").mkdir()
    for name in ("new.py", "local.py", "notes.csv", "id_rsa", ".env", "data/big.csv"):
        (package / name).write_text("x")
    (package / "sweep/b.csv").unlink()
    copy = code_snapshot.take(tmp_path)
    assert contents(copy / "densevit").keys() == {"a.py", "new.py"}
    assert code_snapshot.take(tmp_path) == copy
    assert code_files.remarks(package, None) == [
        "the copy of the code has new.py, which git does not track",
        "not copied, as git does not track it: id_rsa, local.py, notes.csv; `git add` what jobs "
        "need",
    ]


def test_without_git_the_kinds_of_files_of_the_package_are_copied(package, tmp_path):
    for name in ("id_rsa", "notes.txt", ".env"):
        (package / name).write_text("x")
    copy = code_snapshot.take(tmp_path)
    assert contents(copy / "densevit").keys() == {"a.py", "sweep/b.csv"}
    assert code_files.remarks(package, None) == [
        "not copied, as git does not track it: id_rsa, notes.txt; `git add` what jobs need"
    ]
    listed = code_files.code_files(PACKAGE)
    assert {Path(name).suffix for name in listed.copied} == set(code_files.PACKAGED)


def test_what_looks_like_a_secret_is_named_before_it_is_copied(package):
    token = "ghp_" + 36 * "a"
    (package / "a.py").write_text(f"token = {token!r}\n")
    diff = f"diff --git a/slurm/x.yaml b/slurm/x.yaml\n+token: {token}\n"
    assert code_files.remarks(package, diff) == [
        "the copy of the code, which you alone can read, holds what looks like a secret: a.py (a "
        "GitHub token)",
        "the recorded git diff holds what looks like a secret: slurm/x.yaml (a GitHub token); "
        "git_diff: false keeps it out",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
def test_another_users_copy_is_not_run(package, tmp_path):
    first = code_snapshot.take(tmp_path)
    os.chown(first, 65534, 65534)
    second = code_snapshot.take(tmp_path)
    assert (second.parent, second.name) == (first.parent, f"{first.name}-0")
    assert contents(second / "densevit") == contents(package)
    assert json.loads((second / "snapshot.json").read_text())["digest"] == first.name
    assert code_snapshot.take(tmp_path) == second
    seen = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", str(second)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert seen.returncode != 0
    assert "Permission denied" in seen.stderr
    os.chown(second, 65534, 65534)
    with pytest.raises(UserError, match=rf"{second}: belongs to another user; remove it"):
        code_snapshot.take(tmp_path)


def test_a_diff_is_recorded_for_its_owner_alone_or_not_at_all(checkout, tmp_path):
    """With `git_diff: false`, neither in the copy for jobs nor in the run's record."""
    added = checkout / "densevit/runs/__init__.py"
    before = added.read_text()
    added.write_text(before + f'token = "hf_{34 * "a"}"\n')
    code = (
        "import json, sys; from pathlib import Path; from densevit.launch.code_snapshot import take;"
        "from densevit.config.run_config import RunConfig;"
        "from densevit.runs.directory import RunFolder;"
        "from densevit.runs.provenance import record_start\n"
        f"here = Path({str(tmp_path)!r})\n"
        "for diff in (False, True):\n"
        "    folder = RunFolder(here / str(diff))\n"
        "    folder.create(RunConfig(git_diff=diff))\n"
        "    record_start(folder)\n"
        "    copy = take(here, diff=diff)\n"
        "    print((copy / 'snapshot.json').read_text().replace('\\n', ''))\n"
    )
    try:
        told = python(code, checkout, checkout, stderr=subprocess.PIPE)
        said, warned = told.communicate(timeout=600)
        assert told.returncode == 0, warned
    finally:
        added.write_text(before)
    taken = [json.loads(line)["git_diff"] for line in said.splitlines()]
    files = [tmp_path / name / "provenance.json" for name in ("False", "True")]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    recorded = [json.loads(file.read_text())["starts"][0]["git_diff"] for file in files]
    assert recorded == taken
    assert taken[0] == "not recorded, as git_diff is false\n"
    assert "+token = " in taken[1]
    assert warned.count("the git diff in it holds what looks like a secret: ") == 1
    assert "densevit/runs/__init__.py (a Hugging Face token); git_diff: false keeps it" in warned
